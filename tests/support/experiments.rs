//! Mutation experiments: change a line of the source and check that a test fails. The tour of the
//! code and the page on traps list such experiments.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "sources.rs"]
mod sources;
#[path = "tree_copy.rs"]
mod tree_copy;

pub use sources::{read, sources_in};
use tree_copy::TreeCopy;

/// A source change, and the test that has to fail because of it.
#[derive(Clone, Debug)]
pub struct Experiment {
    pub file: String,
    pub original: String,
    pub replacement: String,
    pub test: String,
}

impl Experiment {
    /// Asserts that the original text occurs exactly once in the code of the file, and that the test exists.
    pub fn assert_applicable(&self) {
        let source = read(&self.file);
        let code = source.split("\nmod tests {").next().expect("split always yields a first part");
        let count = code.matches(&self.original).count();
        assert_eq!(count, 1, "{} should contain this exactly once: {}", self.file, self.original);
        assert_ne!(self.original, self.replacement, "{}: the replacement changes nothing", self.file);
        target_of(&self.test);
    }
}

/// Returns the arguments with which Cargo builds only the target that contains this test.
fn target_of(test: &str) -> &'static str {
    let defines_test = |path: &Path| path.is_file() && read(path).contains(&format!("fn {test}()"));
    let in_directory = |directory: &str| sources_in(directory).iter().any(|path| defines_test(path));
    if in_directory("src") {
        return "--lib";
    }
    for (directory, target) in [
        ("tests/daemon", "--test daemon"),
        ("tests/operators", "--test operators"),
        ("tests/bench_checks", "--test bench_checks"),
        ("tests/simulation", "--test simulation"),
    ] {
        if in_directory(directory) {
            return target;
        }
    }
    assert!(defines_test(&PathBuf::from("tests/simulation.rs")), "no test is named {test}");
    "--test simulation"
}

/// Makes each change in a copy of the source tree, and panics if a test passes in spite of it.
///
/// The environment variable `ECHOD_ONLY` restricts the run to experiments with this text in the name
/// of the file or of the test.
pub fn assert_all_fail(experiments: Vec<Experiment>) {
    let copy = TreeCopy::new();
    let only = std::env::var("ECHOD_ONLY").unwrap_or_default();
    let mut survived = Vec::new();
    for Experiment { file, original, replacement, test } in experiments {
        if !file.contains(&only) && !test.contains(&only) {
            continue;
        }
        let source = read(&file);
        fs::write(copy.path(&file), source.replacen(&original, &replacement, 1)).expect("write the changed file");
        let target = target_of(&test);
        let output = copy.shell(&format!("timeout 600 cargo test --offline {target} {test}"));
        let output = String::from_utf8_lossy(&output.stdout);
        let failed = output.lines().any(|line| line.contains(&test) && line.ends_with("FAILED"));
        println!("{file}, {test}: {}", if failed { "fails, as expected" } else { "SURVIVES" });
        if !failed {
            survived.push(format!("{file}: {test}\n{output}"));
        }
        fs::write(copy.path(&file), source).expect("restore the file");
    }
    assert!(survived.is_empty(), "these tests passed in spite of the change:\n{}", survived.join("\n"));
}
