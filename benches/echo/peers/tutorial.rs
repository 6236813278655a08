//! The event loop that mio's own tutorial leads to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};

use super::{ANY_PORT, announce};

/// Serves with a `HashMap` of connections, a fresh buffer for each event, reads until WouldBlock, and a reregistration
/// whenever a write is incomplete.
pub fn serve() -> io::Result<Infallible> {
    use mio::net::{TcpListener, TcpStream};
    use mio::{Events, Interest, Poll, Token};

    struct Connection {
        stream: TcpStream,
        out: Vec<u8>,
        writing: bool,
    }

    /// Reads and writes. Returns whether the connection stays open.
    fn advance(connection: &mut Connection, poll: &Poll, token: Token) -> io::Result<bool> {
        let mut finished = false;
        if connection.out.is_empty() {
            let mut received = vec![0; 4096];
            let mut length = 0;
            loop {
                match connection.stream.read(&mut received[length..]) {
                    Ok(0) => {
                        finished = true;
                        break;
                    }
                    Ok(count) => {
                        length += count;
                        if length == received.len() {
                            received.resize(length + 1024, 0);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            received.truncate(length);
            connection.out = received;
        }
        while !connection.out.is_empty() {
            match connection.stream.write(&connection.out) {
                Ok(count) => drop(connection.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let writing = !connection.out.is_empty();
        if writing != connection.writing {
            let interest = if writing { Interest::WRITABLE | Interest::READABLE } else { Interest::READABLE };
            poll.registry().reregister(&mut connection.stream, token, interest)?;
            connection.writing = writing;
        }
        Ok(writing || !finished)
    }

    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(128);
    let mut listener = TcpListener::bind(ANY_PORT)?;
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    announce(listener.local_addr()?)?;

    let mut connections = HashMap::new();
    let mut next = 1;
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let token = event.token();
            if token == Token(0) {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    poll.registry().register(&mut stream, Token(next), Interest::READABLE)?;
                    connections.insert(Token(next), Connection { stream, out: Vec::new(), writing: false });
                    next += 1;
                }
            } else if let Some(connection) = connections.get_mut(&token)
                && !advance(connection, &poll, token).unwrap_or(false)
            {
                connections.remove(&token);
            }
        }
    }
}
