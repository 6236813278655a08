//! A TCP echo daemon (RFC 862): one thread, one hand-written readiness loop on mio.
#![forbid(unsafe_code)]

pub mod token;
pub mod transport;
