//! A copy of the repository to change and build, for tests that break the code on purpose.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A copy of the repository's files in a temporary directory, which is removed when this is dropped.
pub struct TreeCopy(PathBuf);

impl TreeCopy {
    pub fn new() -> TreeCopy {
        let copy = TreeCopy(std::env::temp_dir().join(format!("echod-experiments-{}", std::process::id())));
        let script = format!(
            "mkdir {0} && git ls-files -z -co --exclude-standard | tar -c --null -T - | tar -x -C {0}",
            copy.0.display()
        );
        let copied = Command::new("sh").args(["-c", &script]).output().expect("sh should run");
        assert!(copied.status.success(), "cannot copy the source tree: {copied:?}");
        copy
    }

    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.0.join(file)
    }

    /// Runs a shell command in the copy. Its stdout contains its stderr.
    pub fn shell(&self, command: &str) -> Output {
        let script = format!("exec 2>&1; {command}");
        Command::new("sh").args(["-c", &script]).current_dir(&self.0).output().expect("sh should run")
    }
}

impl Drop for TreeCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
