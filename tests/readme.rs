//! Checks that the README is up to date.

use std::process::Command;

#[test]
fn readme_contains_the_help_text() {
    let output = Command::new(env!("CARGO_BIN_EXE_echod")).arg("--help").output().expect("echod runs");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let readme = include_str!("../README.md");
    assert!(
        readme.contains(&format!("```text\n{}\n```\n", help.trim_end())),
        "README.md, \"Options\", and --help differ; this is --help:\n{help}"
    );
}
