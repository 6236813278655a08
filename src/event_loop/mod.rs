//! The event loop: the reference that this project is about.
pub mod acceptor;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod deadlines;
pub mod observer;
pub mod outcome;
pub mod pending;
pub mod protocol;
pub mod readiness;
pub mod scratch;
pub mod server;
pub mod settings;
pub mod state;
pub mod token;
pub mod transport;
