//! The daemon's edges.
pub mod limits;
pub mod monitoring;
pub mod options;
pub mod output;
pub mod signals;
pub mod systemd;
