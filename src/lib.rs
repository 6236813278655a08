//! A TCP echo daemon (RFC 862): one thread, one hand-written readiness loop on mio.
#![forbid(unsafe_code)]

pub mod connection;
pub mod deadlines;
pub mod descriptors;
pub mod listener;
pub mod metrics;
pub mod observer;
pub mod options;
pub mod output;
pub mod protocol;
pub mod server;
pub mod signals;
pub mod token;
pub mod transport;
