//! What the benchmark prints and writes.
//!
//! - `format`: numbers as text
//! - `json`: `results.json`, with every round
//! - `machine`: what is recorded about the machine
//! - `svg`: the pictures
//! - `tables`: the tables on standard output

mod format;
pub mod json;
mod machine;
pub mod svg;
pub mod tables;

pub use machine::Machine;
