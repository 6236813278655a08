//! The bare readiness loop that the other servers are compared with.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::Timespec;

use super::{ANY_PORT, announce};

/// Serves with the least that a readiness loop must do: epoll(7), edge-triggered, one shared buffer, one read and one
/// write per message, and the rest of a short write kept. No limits, deadlines, counters, log or drain.
///
/// With a timeout of 0 it never sleeps, which removes the wake-up from the latency.
pub fn serve(timeout: Option<&Timespec>) -> io::Result<Infallible> {
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use rustix::net::{SocketFlags, accept_with, sockopt};

    struct Connection {
        stream: OwnedFd,
        /// Output that the peer has not received yet.
        rest: Box<[u8]>,
    }

    let listener = std::net::TcpListener::bind(ANY_PORT)?;
    listener.set_nonblocking(true)?;
    sockopt::set_tcp_nodelay(&listener, true)?; // Inherited by accepted sockets on Linux.
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let token = |descriptor: &dyn AsRawFd| EventData::new_u64(descriptor.as_raw_fd() as u64);
    epoll::add(&epoll, &listener, token(&listener), EventFlags::IN | EventFlags::ET)?;
    announce(listener.local_addr()?)?;

    let mut connections: Vec<Option<Connection>> = Vec::new(); // Indexed by descriptor: the kernel assigns the lowest.
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
                    Ok(_) | Err(_) => break, // Dropping the connection closes it.
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
                    continue 'events; // A short read has emptied the receive queue.
                }
            }
            connections[descriptor] = None;
        }
    }
}
