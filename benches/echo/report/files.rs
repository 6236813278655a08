//! The files in the output directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Machine, json, svg};
use crate::results::Outcome;
use crate::server::Spec;

/// The output directory.
pub struct Output {
    directory: PathBuf,
}

impl Output {
    /// Creates the directory, and makes sure that it can be written before anything is measured.
    pub fn create(directory: &Path) -> Result<Output, String> {
        let failed = |error: io::Error| format!("cannot write to {}: {error}", directory.display());
        fs::create_dir_all(directory).map_err(failed)?;
        let directory = directory.canonicalize().map_err(failed)?;
        fs::write(directory.join("results.json"), "{}\n").map_err(failed)?;
        Ok(Output { directory })
    }

    /// Returns the absolute path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes all files anew. Each is replaced as a whole, so that an interrupted run leaves none half written.
    pub fn write(&self, outcomes: &[Outcome], servers: &[Spec], machine: &Machine) -> Result<(), String> {
        let mut files = vec![("results.json".to_owned(), format!("{:#}\n", json::all(outcomes, servers, machine)))];
        files.extend(svg::all(outcomes, machine).into_iter().map(|(name, picture)| (name.to_owned(), picture)));
        for (name, contents) in files {
            self.replace(&name, &contents).map_err(|error| format!("cannot write {name}: {error}"))?;
        }
        Ok(())
    }

    fn replace(&self, name: &str, contents: &str) -> io::Result<()> {
        let (temporary, path) = (self.directory.join(format!(".{name}.new")), self.directory.join(name));
        fs::write(&temporary, contents)?;
        fs::rename(temporary, path)
    }
}
