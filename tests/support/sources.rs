//! The repository's own source files, for tests that check them.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the text of a file in the repository.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Returns the paths of all Rust files in a folder and its subfolders.
pub fn sources_in(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let folder = folder.as_ref();
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("directory entry").path());
    let sources = |path: PathBuf| match path.is_dir() {
        true => sources_in(path),
        false => Vec::from_iter(Some(path).filter(|path| path.extension().is_some_and(|extension| extension == "rs"))),
    };
    paths.flat_map(sources).collect()
}
