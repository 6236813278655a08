//! The cost of the connection state machine alone: each socket is a pair of numbers, without
//! system calls and without copies.
//!
//!     cargo bench --bench turn

use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};

use divan::{Bencher, black_box};
use echod::connection::Connection;
use echod::observer::Silent;
use echod::readiness::Readable;
use echod::transport::{Peer, Transport};
use echod::verdict::{Reason, Turn};
use echod::workbench::Workbench;

/// The default size of the read buffer.
const BUFFER_SIZE: usize = 64 * 1024;

fn main() {
    // Any other argument is meant for the echo benchmark: `cargo bench -- --scenario fifty`.
    if env::args().skip(1).all(|word| word == "--bench") {
        divan::Divan::default().run_benches();
    }
}

/// A socket whose calls have predetermined results.
#[derive(Clone, Copy)]
struct Socket {
    /// How many bytes can be read; None after the FIN of the peer.
    inbox: Option<usize>,
    /// How many bytes can be written.
    room: usize,
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inbox {
            None => Ok(0),
            Some(0) => Err(ErrorKind::WouldBlock.into()),
            Some(held) => {
                let count = buffer.len().min(*held);
                *held -= count;
                Ok(count)
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        self.room -= count;
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Socket {
    fn short_read_is_last(&self) -> bool {
        true
    }

    fn unread(&self) -> io::Result<u32> {
        Ok(self.inbox.unwrap_or(0) as u32)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Measures how a fresh connection is served after one event.
fn turn(bencher: Bencher, socket: Socket, readable: Readable, outcome: Turn) {
    let mut bench = Workbench::new(BUFFER_SIZE);
    bencher.with_inputs(|| connection(socket)).bench_local_refs(|connection| {
        connection.note(black_box(readable), true);
        let turn = connection.turn(&mut bench, &mut Silent);
        assert_eq!(turn, outcome);
    });
}

fn connection(socket: Socket) -> Connection<Socket> {
    Connection::new(socket, Peer::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST), 4711), 1, false, 0)
}

/// One read and one write, then the connection waits: the common case.
#[divan::bench]
fn a_message(bencher: Bencher) {
    turn(bencher, Socket { inbox: Some(64), room: 1000 }, Readable::UntilShort, Turn::Waits);
}

/// Next to a FIN or urgent data, a short read does not prove an empty queue: one more read.
#[divan::bench]
fn a_message_read_until_blocked(bencher: Bencher) {
    turn(bencher, Socket { inbox: Some(64), room: 1000 }, Readable::UntilBlocked, Turn::Waits);
}

/// An event without data.
#[divan::bench]
fn nothing_to_read(bencher: Bencher) {
    turn(bencher, Socket { inbox: Some(0), room: 1000 }, Readable::UntilShort, Turn::Waits);
}

/// More data than the budget of one time slice.
#[divan::bench]
fn as_much_as_a_turn_reads(bencher: Bencher) {
    turn(bencher, Socket { inbox: Some(usize::MAX), room: usize::MAX }, Readable::UntilShort, Turn::Again);
}

/// The peer does not read: the output is copied, and reading stops.
#[divan::bench(args = [64, BUFFER_SIZE])]
fn a_stall(bencher: Bencher, message: usize) {
    turn(bencher, Socket { inbox: Some(message), room: 0 }, Readable::UntilShort, Turn::Waits);
}

/// The peer has sent its FIN, and the connection closes.
#[divan::bench]
fn a_fin(bencher: Bencher) {
    turn(bencher, Socket { inbox: None, room: 1000 }, Readable::UntilBlocked, Turn::Ended(Reason::Finished));
}
