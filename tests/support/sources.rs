//! The repository's own source files, for tests that check them.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the text of a file of the repository.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the Rust files of a folder and of the folders in it.
pub fn sources_in(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let sources = |path: PathBuf| match path.is_dir() {
        true => sources_in(path),
        false => Vec::from_iter(Some(path).filter(|path| path.extension().is_some_and(|extension| extension == "rs"))),
    };
    entries.flat_map(sources).collect()
}
