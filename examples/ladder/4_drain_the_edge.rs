//! Rung 4: use up each edge. Read until `WouldBlock`, accept until `WouldBlock`, and keep what
//! cannot be written yet.
//!
//! New: after `WouldBlock`, and only then, the next event is certain. Bytes that the socket does
//! not accept are kept in `pending`. While any are pending, nothing is read from that peer
//! (backpressure), so `pending` never holds more than one read. An error ends only its own
//! connection.
//!
//! Still broken: what an event said is forgotten after it has been handled, so data that arrived
//! while the connection was stalled is never read (T4). A FIN is taken for the end of both
//! directions, even if bytes are pending (T6, T27). A peer that always has more to read occupies
//! the loop (T3).
//!
//!     cargo run --example 4_drain_the_edge
//!     cargo run --example conformance -- 127.0.0.1:9999 slow-reader stalled-fin

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(0);

struct Connection {
    stream: TcpStream,
    /// Bytes that were read and could not be written yet. While there are some, the connection is
    /// *stalled*.
    pending: Vec<u8>,
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".into());
    let mut listener = TcpListener::bind(address.parse()?)?;
    writeln!(io::stdout(), "listening on tcp://{}", listener.local_addr()?)?;

    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections = HashMap::new();
    let mut next_token = 1;
    loop {
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&mut listener, &poll, &mut connections, &mut next_token),
                token => {
                    let Some(connection) = connections.get_mut(&token) else { continue };
                    if !connection.on_event(event).unwrap_or(false) {
                        connections.remove(&token);
                    }
                }
            }
        }
    }
}

/// Accepts connections until there are no more.
fn accept(
    listener: &mut TcpListener,
    poll: &Poll,
    connections: &mut HashMap<Token, Connection>,
    next_token: &mut usize,
) {
    // Ends at `WouldBlock`, and also at any other error (T16).
    while let Ok((mut stream, _)) = listener.accept() {
        let token = Token(*next_token);
        *next_token += 1;
        // Both interests, once and for all: changing them later costs a system call each time.
        if poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            connections.insert(token, Connection { stream, pending: Vec::new() });
        }
    }
}

impl Connection {
    /// Reads and writes as much as possible. Returns whether the connection stays open.
    fn on_event(&mut self, event: &Event) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        while event.is_readable() && self.pending.is_empty() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.pending.extend_from_slice(&buffer[..count]);
                    self.flush()?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // Trap (T4): if this makes room, the loop above is not entered again.
        self.flush()?;
        // Trap (T6, T27): the peer's FIN says that it will not send any more, not that it does not
        // read.
        Ok(!event.is_read_closed())
    }

    /// Writes what is pending, until nothing is or the send buffer is full.
    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
