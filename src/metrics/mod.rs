//! Metrics.
pub mod durations;
pub mod endpoint;
pub mod exposition;
pub mod process;
mod request;
mod reserve;
