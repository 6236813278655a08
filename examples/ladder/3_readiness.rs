//! Rung 3: one thread waits for all sockets at once. The comments in this rung are a first guide to
//! mio.
//!
//! New: no call on a socket waits. Only [`Poll::poll`] waits, for all sockets together, and it
//! reports those that have become ready. A connection costs a map entry instead of a thread.
//!
//! Still broken: like many examples, it reads once per event, which is not enough. A FIN and the
//! rest of a long message stay unread (T1). A write that does not fit into the send buffer is an
//! error (T12). Of several new connections, one is accepted (T14). The first error of any peer ends
//! the server (T11, T15).
//!
//!     cargo build --examples
//!     cargo run --example conformance -- --spawn 'target/debug/examples/3_readiness 127.0.0.1:{port}'

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};

// mio has its own socket types. They work like those of std, except that they never block: a call
// that would have to wait returns `ErrorKind::WouldBlock` instead. That is an answer ("not now"),
// not a failure.
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

// A `Token` is a number of our choice. mio stores it with a socket and returns it with every event
// of that socket, so that we can find the socket again.
const LISTENER: Token = Token(0);

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".into());
    let mut listener = TcpListener::bind(address.parse()?)?;
    writeln!(io::stdout(), "listening on tcp://{}", listener.local_addr()?)?;

    // `Poll` is the kernel's list of sockets that we are interested in: epoll(7) on Linux,
    // kqueue(2) on the BSDs and macOS. Its `Registry` is the handle through which sockets are added
    // to the list. `Interest` says which news we want: READABLE (data, a FIN, or on a listener a
    // new connection), WRITABLE (room in the send buffer), or both.
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;

    // Each `poll` replaces the contents of `Events`. If more sockets are ready than it can hold,
    // the next call returns the others.
    let mut events = Events::with_capacity(1024);
    let mut connections = HashMap::new();
    let mut next_token = 1;
    loop {
        // The only call that waits. `None` is the timeout: wait until something happens.
        // `Interrupted` says that a signal ended the wait, for example SIGCONT after SIGSTOP.
        // `events` is empty then, and nothing is lost.
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&mut listener, &poll, &mut connections, &mut next_token)?,
                token => {
                    // An event for a connection that has been closed has nothing to report.
                    let Some(stream) = connections.get_mut(&token) else { continue };
                    // mio is *edge-triggered*: an event says, once, that a socket *has become*
                    // ready. What we leave unread is not announced again; the next event comes when
                    // something new arrives.
                    if !echo(stream)? {
                        connections.remove(&token); // Closes the socket, which also removes it from `Poll`.
                    }
                }
            }
        }
    }
}

/// Accepts one connection and registers it.
fn accept(
    listener: &mut TcpListener,
    poll: &Poll,
    connections: &mut HashMap<Token, TcpStream>,
    next_token: &mut usize,
) -> io::Result<()> {
    // Trap (T14): there may be more connections in the queue, and no further event will say so.
    let (mut stream, _) = match listener.accept() {
        // An event is a hint, not a promise. It may be *spurious*: nothing is there after all.
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        result => result?,
    };
    let token = Token(*next_token);
    *next_token += 1;
    // If data has arrived already, registering brings an event at once. So nothing needs to be read
    // here.
    poll.registry().register(&mut stream, token, Interest::READABLE)?;
    connections.insert(token, stream);
    Ok(())
}

/// Echoes one read. Returns whether the connection stays open.
fn echo(stream: &mut TcpStream) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        // The peer's FIN: the only reliable sign that nothing more will arrive.
        Ok(0) => Ok(false),
        // Trap (T1): there may be more bytes, or a FIN, behind these. Trap (T12): `write_all` fails
        // with `WouldBlock` once the send buffer is full, and does not say how many bytes it has
        // written.
        Ok(count) => stream.write_all(&buffer[..count]).map(|()| true),
        // A spurious event again.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        // Trap (T11): the caller returns this error, and so the reset of one peer ends the server.
        Err(error) => Err(error),
    }
}
