//! A second protocol on the same loop: every line comes back with its bytes in reverse order, as rev(1) does it.
//!
//!     cargo run --example lines -- 127.0.0.1:7777
//!     printf 'stressed\npa' | nc -N 127.0.0.1 7777
//!
//! Echo can answer every byte as it comes. This protocol cannot: before the newline is in, there is nothing to say. So it
//! shows what echo does not need.
//!
//! - A read brings what the kernel has, not what the peer wrote: half a line, three lines, or both. [`Lines`] keeps
//!   the half between reads.
//! - What is kept is bounded. Without [`MAX_LINE_LEN`], a peer that never sends a newline takes all the memory there is.
//! - Bytes are bytes. A line is what ends with 0x0a; nothing here asks whether it is text.
//! - A line that the peer's FIN cuts off has not ended, so it has no answer (above: `desserts`, and nothing for `pa`).
//!
//! What it does not show is sockets. Stalls, half-close, resets, idle timeouts and drains are the loop's, and stay as they are.

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

/// The longest line that is answered, in bytes before its newline. A longer one is answered with [`TOO_LONG`].
const MAX_LINE_LEN: usize = 1024;

/// Shorter than what it stands for, so that the answer to a read never outgrows the read and one kept line.
const TOO_LONG: &[u8] = b"(too long)\n";

/// Where one peer is in its line.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line whose end is not in: at most [`MAX_LINE_LEN`] bytes.
    begun: Vec<u8>,
    /// The line is too long, and was answered: the rest of it is skipped.
    skipping: bool,
    /// The answer to the last read. Its room is kept for the next one.
    answer: Vec<u8>,
    /// Bytes of all answers.
    answered: u64,
}

impl Protocol for Lines {
    fn answer<'a>(&'a mut self, received: &'a [u8]) -> &'a [u8] {
        self.answer.clear();
        for piece in received.split_inclusive(|&byte| byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.take(end);
                    self.end_of_line();
                }
                None => self.take(piece),
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
    /// More of the line, without its newline.
    fn take(&mut self, piece: &[u8]) {
        if self.skipping {
            return;
        }
        if self.begun.len() + piece.len() > MAX_LINE_LEN {
            // Said now: the newline may never come.
            self.answer.extend_from_slice(TOO_LONG);
            self.begun.clear();
            self.skipping = true;
            return;
        }
        self.begun.extend_from_slice(piece);
    }

    fn end_of_line(&mut self) {
        if !std::mem::take(&mut self.skipping) {
            self.answer.extend(self.begun.iter().rev());
            self.answer.push(b'\n');
            self.begun.clear();
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
        max_connections: limits::cap(None, limit, listeners.len()),
        idle_timeout: Some(Duration::from_secs(600)),
        drain_timeout: Duration::from_secs(5),
        buffer_size: 65536,
        busy_poll: Duration::ZERO,
    };
    Server::<_, Lines>::new(settings, listeners, NoMonitor, signals)?.run(&mut Silent)?;
    Ok(())
}
