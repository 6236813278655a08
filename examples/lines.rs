//! A second protocol on the same event loop: sends every line back with its bytes in reverse order,
//! like rev(1).
//!
//!     cargo run --example lines -- 127.0.0.1:7777
//!     printf 'stressed\npa' | nc -N 127.0.0.1 7777
//!
//! An echo server can answer every byte as it arrives. This protocol cannot: until the newline has
//! arrived, there is nothing to send. The example shows what that adds:
//!
//! - A read returns what the kernel has, not what the peer wrote: half a line, three lines, or both. [`Lines`] keeps
//!   the half line between reads.
//! - The kept half is bounded. Without [`MAX_LINE_LEN`], a peer that never sends a newline could use up all memory.
//! - Bytes are bytes. A line ends with 0x0a; nothing here requires it to be text.
//! - A line that is cut off by the peer's FIN is incomplete and gets no answer (above: `desserts`, and nothing for `pa`).
//!
//! It contains no socket code. Stalled peers, half-close, resets, idle timeouts and graceful
//! shutdown are handled by the event loop, which is unchanged.

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use echod::daemon::{limits, signals};
use echod::event_loop::monitor::NoMonitor;
use echod::event_loop::observer::Silent;
use echod::event_loop::protocol::Protocol;
use echod::event_loop::server::Server;
use echod::event_loop::settings::Settings;
use echod::listen::address::Address;
use echod::listen::socket::ListenOptions;

/// The longest line that is reversed, in bytes before its newline. A longer one is answered with
/// [`TOO_LONG`].
const MAX_LINE_LEN: usize = 1024;

/// Shorter than any line it replaces, so that an answer is never longer than the read plus one kept
/// line.
const TOO_LONG: &[u8] = b"(too long)\n";

/// The state of one connection: its unfinished line.
#[derive(Debug, Default)]
struct Lines {
    /// The start of a line whose newline has not arrived: at most [`MAX_LINE_LEN`] bytes.
    partial: Vec<u8>,
    /// Whether the current line was too long: [`TOO_LONG`] was sent, and the rest of the line is
    /// skipped.
    skipping: bool,
    /// The answer to the last read. The allocation is reused for the next one.
    answer: Vec<u8>,
    /// The total number of bytes in all answers.
    answered: u64,
}

impl Protocol for Lines {
    fn answer<'a>(&'a mut self, received: &'a [u8]) -> &'a [u8] {
        self.answer.clear();
        for piece in received.split_inclusive(|&byte| byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.append(end);
                    self.end_of_line();
                }
                None => self.append(piece),
            }
        }
        self.answered += self.answer.len() as u64;
        &self.answer
    }

    fn answered(&self, _received: u64) -> u64 {
        self.answered
    }
}

impl Lines {
    /// Appends to the current line. `piece` does not contain the newline.
    fn append(&mut self, piece: &[u8]) {
        if self.skipping {
            return;
        }
        if self.partial.len() + piece.len() > MAX_LINE_LEN {
            // Sent now, because the newline may never arrive.
            self.answer.extend_from_slice(TOO_LONG);
            self.partial.clear();
            self.skipping = true;
            return;
        }
        self.partial.extend_from_slice(piece);
    }

    /// Answers the current line and starts a new one.
    fn end_of_line(&mut self) {
        if !std::mem::take(&mut self.skipping) {
            self.answer.extend(self.partial.iter().rev());
            self.answer.push(b'\n');
            self.partial.clear();
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7777".into());
    let limit = limits::raise_limit();
    let signals = signals::register()?;
    let listeners =
        Address::parse(&address)?.bind(&ListenOptions { backlog: 1024, reuse_port: false, socket_buffer: None })?;
    for listener in &listeners {
        writeln!(io::stdout(), "listening on {}", listener.local())?;
    }
    let settings = Settings {
        one_shot: false,
        max_connections: limits::max_connections(None, limit, 0)?,
        idle_timeout: Some(Duration::from_secs(600)),
        drain_timeout: Duration::from_secs(5),
        buffer_size: 65536,
        max_tcp_read: 65536,
        max_buffered: 64 << 20,
        busy_poll: Duration::ZERO,
    };
    Server::<_, Lines>::new(settings, listeners, NoMonitor, signals)?.run(&mut Silent)?;
    Ok(())
}
