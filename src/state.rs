//! The words for where a connection stands.

/// Where a connection is in its life, in the words of RFC 9293, 3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open both ways.
    Established,
    /// Open both ways, in one-shot mode: one read of at most 1024 bytes will be answered. Then we finish.
    OneMessage,
    /// Open both ways, but the server drains: `held` more bytes, which the kernel held when the drain
    /// began, are read and answered. Then we finish. A count, so that a peer that keeps sending cannot
    /// put its FIN off.
    Draining {
        /// Bytes still to be read.
        held: u32,
    },
    /// The peer's FIN is in; what we owe is going out, then our FIN. Nothing is read.
    CloseWait,
    /// We finish first: what we owe is going out, then our FIN. Nothing is read.
    Finishing(Cause),
    /// Our FIN is out, the peer's is not in (RFC 9293: FIN-WAIT-1 and -2). Nothing is pending. What
    /// still arrives is read and dropped, because closing with unread bytes sends RST, and an RST
    /// can destroy what the peer has not read yet.
    FinWait,
    /// As `FinWait`, but in one-shot mode, which waits for nobody: what the kernel held at our FIN,
    /// `held` more bytes, is read and dropped, then we close.
    Discarding {
        /// Bytes still to be read.
        held: u32,
    },
}

/// Why our FIN goes out before the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The one message of `--one-shot` is answered.
    OneShot,
    /// The server drains.
    Drained,
}
