//! The server's configuration, independent of how it was specified.

use std::time::Duration;

/// The configuration of a [`Server`](crate::event_loop::server::Server).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Echo one message, then close first.
    pub one_shot: bool,
    /// The connection limit, at least 1.
    pub max_connections: usize,
    /// Close a connection on which no byte moved for this long, at most 24 days. `None` disables the timeout.
    pub idle_timeout: Option<Duration>,
    /// How long a graceful shutdown waits for peers to close.
    pub drain_timeout: Duration,
    /// The size of the scratch buffer in bytes, at least 1.
    pub buffer_size: usize,
    /// The maximum of bytes per read from TCP, at least 1.
    pub max_tcp_read: usize,
    /// The bound for the memory that holds unsent output of all connections together, in bytes, at least 1.
    pub max_buffered: usize,
    /// How long to keep polling after an event before blocking in the poller.
    pub busy_poll: Duration,
}
