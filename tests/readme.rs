//! The README matches the program.

use std::process::Command;

const README: &str = include_str!("../README.md");

/// Someone who decides whether to use echod should not have to scroll through more than this.
const MAX_LINES: usize = 200;

#[test]
fn readme_help_matches_program() {
    let output = Command::new(env!("CARGO_BIN_EXE_echod")).arg("--help").output().expect("echod runs");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        README.contains(&format!("```text\n{}\n```\n", help.trim_end())),
        "README.md, \"Options\", and --help differ; this is --help:\n{help}"
    );
}

#[test]
fn readme_is_short_and_names_the_minimum_rust_version() {
    let lines = README.lines().count();
    assert!(lines <= MAX_LINES, "README.md has {lines} lines; move details to the page that its section links to");
    let sentence = format!("It needs Rust {} or later", env!("CARGO_PKG_RUST_VERSION"));
    assert!(README.contains(&sentence), "README.md should say: {sentence}");
}
