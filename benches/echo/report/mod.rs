//! What the benchmark prints and writes.
//!
//! - `table`, `tables`: the tables, and printing them to standard output
//! - `comparison`: the table of two builds
//! - `files`: the files in the output directory, written after each scenario
//! - `json`: `results.json`, with every round; `records`: CSV and percentile distributions
//! - `html`: one page with everything, from the template `page.html`
//! - `machine`: what is recorded about the machine and the build
//! - `svg`: the pictures
//! - `format`: numbers as text

pub mod comparison;
pub mod files;
mod format;
mod html;
mod json;
mod machine;
mod records;
mod svg;
mod table;
pub mod tables;

pub use machine::Machine;
