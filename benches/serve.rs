//! The cost of the connection state machine alone: each socket is a pair of numbers, without
//! system calls and without copies.
//!
//!     cargo bench --bench serve

use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};

use divan::{Bencher, black_box};
use echod::event_loop::connection::{Connection, Quantum};
use echod::event_loop::observer::Silent;
use echod::event_loop::outcome::{CloseReason, Outcome};
use echod::event_loop::readiness::Readable;
use echod::event_loop::scratch::Scratch;
use echod::event_loop::tcp_info::SendQueue;
use echod::event_loop::transport::{Peer, Transport};

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
    fn short_read_drains(&self) -> bool {
        true
    }

    fn is_tcp(&self) -> bool {
        true
    }

    fn bytes_available(&self) -> io::Result<u32> {
        Ok(self.inbox.unwrap_or(0) as u32)
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(buffer.len().min(self.inbox.unwrap_or(0)))
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn send_queue(&self) -> SendQueue {
        SendQueue::Empty
    }

    fn is_complete(&self, _received: u64) -> bool {
        false
    }

    fn output_idle_ms(&self) -> Option<u32> {
        None
    }

    fn reset_on_close(&self) {}
}

/// Measures how a fresh connection is served after one event.
fn serve(bencher: Bencher, socket: Socket, readable: Readable, expected: Outcome) {
    let mut scratch = Scratch::new(BUFFER_SIZE, 64 << 20);
    bencher.with_inputs(|| connection(socket)).bench_local_refs(|connection| {
        connection.record_readiness(black_box(readable), true);
        let outcome = connection.serve(Quantum::LIGHT, &mut scratch, &mut Silent);
        assert_eq!(outcome, expected);
    });
}

fn connection(socket: Socket) -> Connection<Socket> {
    Connection::new(socket, Peer::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST), 4711), 1, false, 0)
}

/// One read and one write, then the connection waits: the common case.
#[divan::bench]
fn a_message(bencher: Bencher) {
    serve(bencher, Socket { inbox: Some(64), room: 1000 }, Readable::UntilShort, Outcome::Idle);
}

/// Next to a FIN or urgent data, a short read does not prove an empty queue: one more read.
#[divan::bench]
fn a_message_read_until_blocked(bencher: Bencher) {
    serve(bencher, Socket { inbox: Some(64), room: 1000 }, Readable::UntilWouldBlock, Outcome::Idle);
}

/// An event without data.
#[divan::bench]
fn nothing_to_read(bencher: Bencher) {
    serve(bencher, Socket { inbox: Some(0), room: 1000 }, Readable::UntilShort, Outcome::Idle);
}

/// More data than the budget of one time slice.
#[divan::bench]
fn as_much_as_one_serve_reads(bencher: Bencher) {
    serve(bencher, Socket { inbox: Some(usize::MAX), room: usize::MAX }, Readable::UntilShort, Outcome::Requeue);
}

/// The peer does not read: the output is copied, and reading stops.
#[divan::bench(args = [64, BUFFER_SIZE])]
fn a_stall(bencher: Bencher, message: usize) {
    serve(bencher, Socket { inbox: Some(message), room: 0 }, Readable::UntilShort, Outcome::Idle);
}

/// The peer has sent its FIN, and the connection closes.
#[divan::bench]
fn a_fin(bencher: Bencher) {
    serve(
        bencher,
        Socket { inbox: None, room: 1000 },
        Readable::UntilWouldBlock,
        Outcome::Closed(CloseReason::Finished),
    );
}
