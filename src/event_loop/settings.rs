//! What a server is told to do: the command line's meaning, without its words.

use std::time::Duration;

/// What a server is told to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Answer one message, then close first.
    pub one_shot: bool,
    /// Connections open at once, at least 1.
    pub max_connections: usize,
    /// `None`: for ever. At most 24 days.
    pub idle_timeout: Option<Duration>,
    /// How long a drain waits for peers.
    pub drain_timeout: Duration,
    /// Bytes of the shared read buffer, at least 1.
    pub buffer_size: usize,
    /// How long to go on polling after an event before sleeping.
    pub busy_poll: Duration,
}
