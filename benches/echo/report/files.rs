//! The files in the output directory.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Machine, html, json, records, svg};
use crate::baseline::Comparison;
use crate::results::Outcome;
use crate::server::Spec;

/// How many earlier results are kept.
const MAX_EARLIER: usize = 20;

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
        keep_earlier(&directory).map_err(failed)?;
        fs::write(directory.join("results.json"), "{}\n").map_err(failed)?;
        Ok(Output { directory })
    }

    /// Returns the absolute path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes all files again. Each is replaced as a whole, so that an interrupted run leaves none half written.
    pub fn write(
        &self,
        outcomes: &[Outcome],
        servers: &[Spec],
        machine: &Machine,
        compared: (Option<&str>, &[Comparison]),
    ) -> Result<(), Box<dyn Error>> {
        let results = json::all(outcomes, servers, machine);
        let pictures = svg::all(outcomes, machine);
        self.replace("results.json", &format!("{results}\n"))?;
        self.replace("results.csv", &records::csv(outcomes)?)?;
        self.replace("index.html", &html::page(outcomes, servers, machine, &pictures, compared, &results)?)?;
        for picture in pictures {
            self.replace(picture.file, &picture.svg)?;
        }
        fs::create_dir_all(self.directory.join("histograms"))?;
        for (name, contents) in records::distributions(outcomes) {
            self.replace(&format!("histograms/{name}"), &contents)?;
        }
        Ok(())
    }

    fn replace(&self, name: &str, contents: &str) -> Result<(), String> {
        let (temporary, path) = (self.directory.join(".new"), self.directory.join(name));
        let written = fs::write(&temporary, contents).and_then(|()| fs::rename(temporary, &path));
        written.map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// Moves the results of the run before to `earlier/`, named by its time, and removes the oldest ones.
fn keep_earlier(directory: &Path) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(directory.join("results.json")) else { return Ok(()) };
    let results: Value = serde_json::from_str(&text).unwrap_or_default();
    // A run that was interrupted in its first scenario has no results.
    let Some(started) = results["started"].as_str() else { return Ok(()) };
    let earlier = directory.join("earlier");
    fs::create_dir_all(&earlier)?;
    fs::rename(directory.join("results.json"), earlier.join(format!("{}.json", started.replace(':', ""))))?;
    let mut names: Vec<PathBuf> = fs::read_dir(&earlier)?.flatten().map(|entry| entry.path()).collect();
    names.sort(); // By time, which is how they are named.
    for oldest in names.iter().take(names.len().saturating_sub(MAX_EARLIER)) {
        fs::remove_file(oldest)?;
    }
    Ok(())
}
