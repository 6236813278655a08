//! Taking a line out and seeing a test fail: for the tour of the code, and for the page on traps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One thing to try: a piece of a file, what to make of it, and the test that then fails.
#[derive(Clone, Debug)]
pub struct Experiment {
    pub file: String,
    pub now: String,
    pub then: String,
    pub test: String,
}

pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Experiment {
    /// The piece stands in the file once, and there is such a test.
    pub fn assert_possible(&self) {
        let source = read(&self.file);
        let code = source.split("\nmod tests {").next().expect("a first part");
        assert_eq!(code.matches(&self.now).count(), 1, "{} does not have this once: {}", self.file, self.now);
        assert_ne!(self.now, self.then);
        target_of(&self.test);
    }
}

/// What to tell Cargo to have this test built, and nothing that is not needed.
fn target_of(test: &str) -> &'static str {
    let has_it = |path: &Path| path.is_file() && read(path).contains(&format!("fn {test}()"));
    let in_directory = |directory: &str| {
        let mut files = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
        files.any(|path| has_it(&path))
    };
    if in_directory("src") {
        return "--lib";
    }
    for (directory, target) in [
        ("tests/daemon", "--test daemon"),
        ("tests/operators", "--test operators"),
        ("tests/bench_checks", "--test bench_checks"),
    ] {
        if in_directory(directory) {
            return target;
        }
    }
    assert!(has_it(&PathBuf::from("tests/simulation.rs")), "there is no test {test}");
    "--test simulation"
}

/// Tries each in a copy of the tree, and fails if a test passes all the same. ECHOD_ONLY chooses by a part of the file's name or of
/// the test's.
pub fn assert_that_all_fail(experiments: Vec<Experiment>) {
    let copy = std::env::temp_dir().join(format!("echod-experiments-{}", std::process::id()));
    let shell = |script: String| Command::new("sh").args(["-c", &script]).output().expect("sh");
    let copied = shell(format!(
        "mkdir {0} && git ls-files -z -co --exclude-standard | tar -c --null -T - | tar -x -C {0}",
        copy.display()
    ));
    assert!(copied.status.success(), "{copied:?}");
    let only = std::env::var("ECHOD_ONLY").unwrap_or_default();
    let mut survived = Vec::new();
    for Experiment { file, now, then, test } in experiments {
        if !file.contains(&only) && !test.contains(&only) {
            continue;
        }
        let source = read(&file);
        fs::write(copy.join(&file), source.replacen(&now, &then, 1)).expect("a copy");
        let target = target_of(&test);
        let output = shell(format!("cd {} && timeout 600 cargo test --offline {target} {test} 2>&1", copy.display()));
        let output = String::from_utf8_lossy(&output.stdout);
        let failed = output.lines().any(|line| line.contains(&test) && line.ends_with("FAILED"));
        println!("{file}, {test}: {}", if failed { "fails, as it should" } else { "SURVIVES" });
        if !failed {
            survived.push(format!("{file}: {test}\n{output}"));
        }
        fs::write(copy.join(&file), source).expect("a copy");
    }
    let _ = fs::remove_dir_all(&copy);
    assert!(survived.is_empty(), "{}", survived.join("\n"));
}
