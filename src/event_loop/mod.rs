//! **The reference**: the event loop, the connection state machine and the buffers, written by hand over mio.
//!
//! What lives here: [`server`] is the loop. [`connection`] is the state machine of one connection, with its [`state`]s, its
//! [`outcome`] and its unsent output ([`pending`]). [`connections`] is the slab with the ready queue. The other files are a
//! page each, and [`monitor`] and [`observer`] are the interfaces through which metrics and `--explain` look in.
//!
//! What it may use: its own files, and [`listen`](crate::listen) for the type of a listening socket. It knows nothing of
//! options, HTTP, systemd, log sinks or `/proc`; `tests/layout.rs` fails when an import says otherwise.

pub mod acceptor;
pub mod busy_poll;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod counters;
pub mod deadlines;
pub mod log_limit;
pub mod memory;
pub mod monitor;
pub mod observer;
pub mod outcome;
pub mod pending;
pub mod protocol;
pub mod readiness;
pub mod scratch;
pub mod server;
pub mod settings;
pub mod signal_source;
pub mod state;
pub mod tcp_info;
pub mod token;
pub mod transport;
