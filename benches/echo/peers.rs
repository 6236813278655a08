//! What echod is measured beside. Each is the server that somebody would write who wants an echo: correct, as every
//! byte is verified, and no more careful than that. All set TCP_NODELAY.
//!
//! The bench's own executable becomes one of them when it is started with `--serve NAME`, so there is nothing else
//! to build, and all are compiled with the settings under which echod ships.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use rustix::event::Timespec;

/// Every peer listens here and asks the kernel for a port.
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Becomes the peer called `name`, for ever. None if there is none of that name.
pub fn serve(name: &str) -> Option<io::Result<Infallible>> {
    match name {
        "floor" => Some(floor(None)),
        "floor-busy" => Some(floor(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))),
        "tokio" => Some(tokio()),
        "threads" => Some(threads()),
        "tutorial" => Some(tutorial()),
        _ => None,
    }
}

/// Says where it listens in echod's own words.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on tcp://{address}")?;
    stdout.flush()
}

/// The least that a readiness loop must do: epoll(7), edge-triggered, one shared buffer, one read and one write for a
/// message, and the rest of a short write kept. No limits, no deadlines, no counters, no log, no drain.
/// With a timeout of 0 it never sleeps: what is left then of a latency is not the waking.
fn floor(timeout: Option<&Timespec>) -> io::Result<Infallible> {
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use rustix::net::{SocketFlags, accept_with, sockopt};

    struct Connection {
        stream: OwnedFd,
        /// What the peer has not taken yet.
        rest: Box<[u8]>,
    }

    let listener = std::net::TcpListener::bind(ANY_PORT)?;
    listener.set_nonblocking(true)?;
    sockopt::set_tcp_nodelay(&listener, true)?; // Linux hands it on to what is accepted.
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let token = |descriptor: &dyn AsRawFd| EventData::new_u64(descriptor.as_raw_fd() as u64);
    epoll::add(&epoll, &listener, token(&listener), EventFlags::IN | EventFlags::ET)?;
    announce(listener.local_addr()?)?;

    let mut connections: Vec<Option<Connection>> = Vec::new(); // By descriptor: the kernel gives the lowest.
    let mut buffer = vec![0; 64 * 1024];
    let mut events = Vec::with_capacity(1024);
    loop {
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        'events: for event in events.drain(..) {
            let descriptor = event.data.u64() as usize;
            if descriptor == listener.as_raw_fd() as usize {
                while let Ok(stream) = accept_with(&listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                    epoll::add(&epoll, &stream, token(&stream), all)?;
                    let descriptor = stream.as_raw_fd() as usize;
                    connections.resize_with(connections.len().max(descriptor + 1), || None);
                    connections[descriptor] = Some(Connection { stream, rest: Box::default() });
                }
                continue;
            }
            let Some(connection) = &mut connections[descriptor] else { continue };
            let flags = event.flags; // The kernel's struct is packed.
            let finished = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            if !connection.rest.is_empty() {
                match rustix::io::write(&connection.stream, &connection.rest) {
                    Ok(count) => connection.rest = connection.rest[count..].into(),
                    Err(rustix::io::Errno::AGAIN) => {}
                    Err(_) => connections[descriptor] = None,
                }
                match &connections[descriptor] {
                    Some(connection) if connection.rest.is_empty() => {}
                    _ => continue,
                }
            }
            let Some(connection) = &mut connections[descriptor] else { continue };
            loop {
                let count = match rustix::io::read(&connection.stream, &mut buffer) {
                    Ok(count) if count > 0 => count,
                    Err(rustix::io::Errno::AGAIN) => continue 'events,
                    Ok(_) | Err(_) => break, // Its end: dropping the connection closes it.
                };
                match rustix::io::write(&connection.stream, &buffer[..count]) {
                    Ok(written) if written == count => {}
                    Ok(written) => {
                        connection.rest = buffer[written..count].into();
                        continue 'events;
                    }
                    Err(rustix::io::Errno::AGAIN) => {
                        connection.rest = buffer[..count].into();
                        continue 'events;
                    }
                    Err(_) => break,
                }
                if count < buffer.len() && !finished {
                    continue 'events; // A short read has emptied the queue.
                }
            }
            connections[descriptor] = None;
        }
    }
}

/// tokio as everyone writes it: a task for each connection with a buffer of its own, `read` and `write_all`.
fn tokio() -> io::Result<Infallible> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(ANY_PORT).await?;
        announce(listener.local_addr()?)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

/// A thread for each connection, blocking: what the standard library offers.
fn threads() -> io::Result<Infallible> {
    let listener = std::net::TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        });
    }
}

/// The loop that mio's own tutorial leads to: a `HashMap` of connections, a fresh buffer for each event, read until
/// WouldBlock, and another registration whenever the peer does not take everything.
fn tutorial() -> io::Result<Infallible> {
    use mio::net::{TcpListener, TcpStream};
    use mio::{Events, Interest, Poll, Token};

    struct Connection {
        stream: TcpStream,
        out: Vec<u8>,
        writing: bool,
    }

    /// Whether the connection stays.
    fn serve(connection: &mut Connection, poll: &Poll, token: Token) -> io::Result<bool> {
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
                && !serve(connection, &poll, token).unwrap_or(false)
            {
                connections.remove(&token);
            }
        }
    }
}
