//! Metrics.
pub mod endpoint;
pub mod exposition;
