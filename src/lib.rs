//! A TCP echo daemon (RFC 862): one thread, one hand-written readiness loop on mio.
#![forbid(unsafe_code)]

pub mod acceptor;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod deadlines;
pub mod descriptors;
pub mod diagram;
pub mod endpoint;
pub mod explain;
pub mod kernel;
pub mod listener;
pub mod metrics;
pub mod observer;
pub mod operators;
pub mod options;
pub mod output;
pub mod pending;
pub mod protocol;
pub mod readiness;
pub mod server;
pub mod service;
pub mod settings;
pub mod signals;
pub mod state;
pub mod token;
pub mod transport;
#[doc = include_str!("traps.md")]
pub mod traps {}
pub mod verdict;
pub mod workbench;
