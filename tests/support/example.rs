//! Finds the programs under `examples/` that Cargo has built.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Returns the path of a program. `cargo test` builds it; `cargo test --test NAME` does not, and
/// then this panics if the program is missing or older than its source.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("test should have a path");
    let path = test.parent().and_then(Path::parent).expect("target/PROFILE/deps").join("examples").join(name);
    let modules = fs::read_dir(format!("examples/{name}")).into_iter().flatten().flatten().map(|entry| entry.path());
    let roots = [format!("examples/{name}.rs"), format!("examples/ladder/{name}.rs")].map(PathBuf::from);
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let source: Option<SystemTime> = roots.into_iter().chain(modules).filter_map(|path| changed(&path)).max();
    assert!(source.is_some(), "the source of {name} should exist");
    assert!(changed(&path) > source, "{} is missing or stale: run `cargo build --examples`", path.display());
    path
}
