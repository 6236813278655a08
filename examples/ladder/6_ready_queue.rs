//! Rung 6: record, then serve. An event only queues its connection; work is done in one place.
//!
//! New: a connection may do a bounded amount of work, and then it is queued again. Its edge is used up
//! by then, so the queue has to remember that there is more, and `poll` does not wait while the queue
//! is not empty (T2, T3). A token contains a generation in addition to the slab's key, so that an
//! event for a closed connection is never taken for one of the connection that has its key now (T8).
//! Deadlines would make that possible, because they close connections without an event.
//!
//! Still broken: a peer that never sends anything is never disconnected (T28). After accept(2) fails
//! for lack of descriptors, pending connections wait for the next edge, even when descriptors are
//! free again (T16). SIGTERM ends every connection at once (T22, T26). A byte that is sent as urgent
//! data is lost. The next rung is `src/event_loop/`.
//!
//!     cargo build --examples
//!     cargo run --example conformance -- --spawn 'target/debug/examples/6_ready_queue 127.0.0.1:{port}'

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

/// How many reads and writes one connection makes before the others are served (at most 16 times 4096
/// bytes), and how many connections are accepted before the open ones are served.
const BUDGET: usize = 32;

/// How many bits of a token are the slab's key. The others are the generation.
const KEY_BITS: u32 = 24;

struct Connection {
    stream: TcpStream,
    state: State,
    /// Whether a read may find something: true from an event until `WouldBlock`.
    readable: bool,
    token: Token,
    /// Whether `ready` contains this connection. It does at most once.
    queued: bool,
}

enum State {
    /// Everything read so far has been echoed.
    Reading,
    /// These bytes have been read and not written. Nothing is read.
    Writing(Vec<u8>),
    /// The peer's FIN has been read, and everything before it has been echoed.
    Finished,
}

/// The result of serving a connection once.
enum Outcome {
    /// It can do nothing until the next event.
    Waiting,
    /// It could continue, but has used up its budget.
    BudgetExhausted,
    Finished,
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".into());
    let mut listener = TcpListener::bind(address.parse()?)?;
    writeln!(io::stdout(), "listening on tcp://{}", listener.local_addr()?)?;

    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Slab<Connection> = Slab::new();
    let mut ready = Vec::new();
    let (mut listener_ready, mut generation) = (false, 0);
    loop {
        // Wait. If there is work left, only collect new events.
        let timeout = (listener_ready || !ready.is_empty()).then_some(Duration::ZERO);
        if let Err(error) = poll.poll(&mut events, timeout)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        // Record.
        for event in &events {
            match event.token() {
                LISTENER => listener_ready = true,
                token => {
                    let key = token.0 & ((1 << KEY_BITS) - 1);
                    let Some(connection) = connections.get_mut(key).filter(|it| it.token == token) else { continue };
                    connection.readable |= event.is_readable();
                    if !std::mem::replace(&mut connection.queued, true) {
                        ready.push(key);
                    }
                }
            }
        }
        // Serve each ready connection once.
        for key in std::mem::take(&mut ready) {
            let connection = &mut connections[key];
            match connection.run().unwrap_or(Outcome::Finished) {
                Outcome::Waiting => connection.queued = false,
                Outcome::BudgetExhausted => ready.push(key),
                Outcome::Finished => drop(connections.remove(key)),
            }
        }
        if listener_ready {
            listener_ready = accept(&mut listener, &poll, &mut connections, &mut generation);
        }
    }
}

/// Accepts connections within the budget. Returns whether there may be more.
fn accept(listener: &mut TcpListener, poll: &Poll, connections: &mut Slab<Connection>, generation: &mut usize) -> bool {
    for _ in 0..BUDGET {
        // `WouldBlock` ends this, and also any other error (T16).
        let Ok((mut stream, _)) = listener.accept() else { return false };
        let entry = connections.vacant_entry();
        let token = Token((*generation << KEY_BITS) | entry.key());
        *generation += 1;
        if poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            entry.insert(Connection { stream, state: State::Reading, readable: false, token, queued: false });
        }
    }
    true
}

impl Connection {
    /// Works until the peer has to act or the budget is used up.
    fn run(&mut self) -> io::Result<Outcome> {
        let mut buffer = [0; 4096];
        for _ in 0..BUDGET {
            match &mut self.state {
                State::Reading if !self.readable => return Ok(Outcome::Waiting),
                State::Reading => match self.stream.read(&mut buffer) {
                    Ok(0) => self.state = State::Finished,
                    Ok(count) => self.state = State::Writing(buffer[..count].to_vec()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                    Err(error) => return Err(error),
                },
                State::Writing(pending) => match self.stream.write(pending) {
                    Ok(count) if count == pending.len() => self.state = State::Reading,
                    Ok(count) => drop(pending.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Outcome::Waiting),
                    Err(error) => return Err(error),
                },
                // Nothing is unread or unwritten, so closing sends our FIN, not RST (T26).
                State::Finished => return Ok(Outcome::Finished),
            }
        }
        Ok(Outcome::BudgetExhausted)
    }
}
