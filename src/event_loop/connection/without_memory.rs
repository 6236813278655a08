//! The echo without memory for output: only bytes that have been written are removed from the receive queue.

use std::io;

use crate::event_loop::connection::Connection;
use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::Outcome;
use crate::event_loop::protocol::Protocol;
use crate::event_loop::readiness::Readable;
use crate::event_loop::scratch::Scratch;
use crate::event_loop::transport::{Transport, write_until_would_block};

/// How many bytes are echoed at a time without memory to keep them. They are copied twice, so the limit is low.
const MAX_PEEK: usize = 4096;

/// How often a read of bytes that are certainly there is repeated before the connection is given up.
const MAX_CONSUME_CALLS: usize = MAX_PEEK + 100;

impl<T: Transport, P: Protocol> Connection<T, P> {
    /// Echoes without memory: what the socket does not accept stays in the receive queue. Returns as `read` does, but never the
    /// number of bytes that were read, because those have been answered already.
    ///
    /// Slower than the usual way, and only for protocols whose answer is what they receive; others are retried later.
    #[cold]
    #[inline(never)]
    pub(super) fn echo_in_place(
        &mut self,
        scratch: &mut Scratch,
        observer: &mut impl Observer,
    ) -> io::Result<Option<usize>> {
        let out_of_memory = || Err(io::ErrorKind::OutOfMemory.into());
        if !P::IS_ECHO {
            return out_of_memory();
        }
        let most = scratch.buffer.len().min(MAX_PEEK);
        let count = match self.stream.peek(&mut scratch.buffer[..most]) {
            Ok(0) => {
                observer.event(self.number, ConnectionEvent::PeerClosedWrite);
                return Ok(Some(0));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = Readable::No;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (written, result) = write_until_would_block(&mut self.stream, &scratch.buffer[..count]);
        self.consume(written, scratch)?;
        if written > 0 {
            observer.event(self.number, ConnectionEvent::Received(&scratch.buffer[..written]));
            observer.event(self.number, ConnectionEvent::Sent(&scratch.buffer[..written]));
            scratch.traffic.received += written as u64;
            scratch.traffic.sent += written as u64;
            self.received += written as u64;
            self.last_active = scratch.ms;
        }
        result?;
        if written < count { out_of_memory() } else { Ok(None) }
    }

    /// Removes bytes from the receive queue that have been peeked at and answered.
    fn consume(&mut self, count: usize, scratch: &mut Scratch) -> io::Result<()> {
        let mut consumed = 0;
        for _ in 0..MAX_CONSUME_CALLS {
            if consumed == count {
                return Ok(());
            }
            match self.stream.read(&mut scratch.buffer[consumed..count]) {
                Ok(count) => consumed += count,
                Err(error) if Outcome::from_io_error(&error).is_transient() => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::InvalidData.into()) // Rather an end than bytes that are echoed twice.
    }
}
