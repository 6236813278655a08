//! Rung 5: the connection is a state machine. Its state decides what to do next, not the flags of
//! the latest event.
//!
//! New: an event sets `readable`, and only a read that returns `WouldBlock` clears it. Each state
//! documents what is true in it. A stalled connection therefore reads again as soon as it has
//! written, and the peer's FIN is seen only after everything before it has been echoed. A slab
//! holds the connections: its keys are small and are reused, and nothing is hashed.
//!
//! Still broken: nothing bounds the work for one connection, so a peer that always has more to read
//! occupies the loop (T3). Because keys are reused, an event for a closed connection could be taken
//! for one of a new connection (T8). That cannot happen on Linux, where `poll` returns one event per
//! socket, as long as a connection is closed only by its own events. (kqueue(2) returns two, for
//! reading and for writing.) It would do no harm as long as an event is only a hint.
//!
//!     cargo build --examples
//!     cargo run --example conformance -- --spawn 'target/debug/examples/5_state_machine 127.0.0.1:{port}' fair

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

struct Connection {
    stream: TcpStream,
    state: State,
    /// Whether a read may find something: true from an event until `WouldBlock`.
    readable: bool,
}

enum State {
    /// Everything read so far has been echoed.
    Reading,
    /// These bytes have been read and not written. Nothing is read.
    Writing(Vec<u8>),
    /// The peer's FIN has been read, and everything before it has been echoed.
    Finished,
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".into());
    let mut listener = TcpListener::bind(address.parse()?)?;
    writeln!(io::stdout(), "listening on tcp://{}", listener.local_addr()?)?;

    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections = Slab::new();
    loop {
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&mut listener, &poll, &mut connections),
                Token(key) => {
                    let Some(connection) = connections.get_mut(key) else { continue };
                    connection.readable |= event.is_readable();
                    if !connection.run().unwrap_or(false) {
                        connections.remove(key);
                    }
                }
            }
        }
    }
}

/// Accepts connections until there are no more.
fn accept(listener: &mut TcpListener, poll: &Poll, connections: &mut Slab<Connection>) {
    // Ends at `WouldBlock`, and also at any other error (T16).
    while let Ok((mut stream, _)) = listener.accept() {
        let entry = connections.vacant_entry();
        let token = Token(entry.key());
        if poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            entry.insert(Connection { stream, state: State::Reading, readable: false });
        }
    }
}

impl Connection {
    /// Works until the peer has to act. Returns whether the connection stays open.
    fn run(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            match &mut self.state {
                State::Reading if !self.readable => return Ok(true),
                State::Reading => match self.stream.read(&mut buffer) {
                    Ok(0) => self.state = State::Finished,
                    Ok(count) => self.state = State::Writing(buffer[..count].to_vec()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                    Err(error) => return Err(error),
                },
                State::Writing(pending) => match self.stream.write(pending) {
                    Ok(count) if count == pending.len() => self.state = State::Reading,
                    Ok(count) => drop(pending.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                },
                // Nothing is unread or unwritten, so closing sends our FIN, not RST (T26).
                State::Finished => return Ok(false),
            }
        }
    }
}
