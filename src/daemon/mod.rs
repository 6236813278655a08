//! The daemon's edges.
pub mod early_exit;
pub mod journal;
pub mod limits;
pub mod logging;
pub mod monitoring;
pub mod options;
pub mod output;
pub mod signals;
pub mod systemd;

pub mod values;
