//! What the benchmark prints and writes.
//!
//! - `tables`: the tables on standard output
//! - `comparison`: the table of two builds
//! - `files`: the files in the output directory, written after each scenario
//! - `json`: `results.json`, with every round
//! - `machine`: what is recorded about the machine and the build
//! - `svg`: the pictures
//! - `format`: numbers as text

pub mod comparison;
pub mod files;
mod format;
mod json;
mod machine;
mod svg;
pub mod tables;

pub use machine::Machine;
