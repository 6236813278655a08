//! The manual page and the shell completions that packages install match the definition that makes `--help`.
//! They are committed so that a package can be built without running anything.
//!
//! After a change of the command line: `ECHOD_BLESS=1 cargo test --test packaging`, and commit the files it writes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::{env, fs};

use clap_complete::Shell;
use clap_mangen::Man;

#[test]
fn manual_page_matches_help_options() {
    let mut options = Vec::new();
    Man::new(echod::daemon::options::command()).render_options_section(&mut options).unwrap();
    let page = include_str!("../packaging/echod.1.in")
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@OPTIONS@\n", str::from_utf8(&options).unwrap());
    assert_committed("packaging/echod.1", page.as_bytes());
}

#[test]
fn completions_match_help_options() {
    for (shell, file) in [(Shell::Bash, "echod.bash"), (Shell::Zsh, "_echod"), (Shell::Fish, "echod.fish")] {
        let mut completions = Vec::new();
        clap_complete::generate(shell, &mut echod::daemon::options::command(), "echod", &mut completions);
        assert_committed(&format!("packaging/completions/{file}"), &completions);
    }
}

#[test]
fn every_package_names_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let image = format!("echod:{version}");
    assert!(include_str!("../packaging/debian/changelog").starts_with(&format!("echod ({version}-1)")));
    let containerfile = include_str!("../packaging/Containerfile");
    assert!(containerfile.contains(&image));
    assert!(containerfile.contains(&format!("image.version=\"{version}\"")));
    assert!(include_str!("../packaging/kubernetes.yaml").contains(&image));
    assert!(include_str!("../packaging/README.md").contains(&format!("echod_{version}-1_")));
}

/// Compares a committed file with the generated text, or writes it with ECHOD_BLESS.
fn assert_committed(file: &str, generated: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("ECHOD_BLESS").is_some() {
        fs::write(&path, generated).unwrap();
    }
    let committed = fs::read(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{file} does not match the command line; run ECHOD_BLESS=1 cargo test --test packaging"
    );
}
