//! What the clients send, and how they recognize it.
//!
//! Each client sends an endless stream of its own: one block of random bytes, repeated, starting at a different offset
//! per client. The block's length is a prime, so a message that was lost, repeated or sent to the wrong client does not
//! look like the expected one. Every stretch of a stream is contiguous in memory: it is sent and compared without a copy,
//! at the speed of memcmp(3).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create, sendfile};

use super::Result;

/// The length after which a client's stream repeats: the largest prime below 65,536.
const PERIOD: usize = 65_521;

/// The longest stretch that [`Pattern::stretch`] returns at once. A message of 64 KiB fits, so it is one write(2).
const MAX_STRETCH: usize = 2 * PERIOD;

/// The distance between the starting offsets of two neighboring clients.
const STRIDE: usize = 7_919;

/// The block three times in a row, so that no stretch wraps.
pub struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    /// Returns the same bytes in every run, so that a failure can be reproduced.
    pub fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // xorshift64: random enough that no stretch looks like another.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        Pattern { bytes: bytes.repeat(3) }
    }

    /// Returns the bytes of a client's stream from `position` on: `length` of them, or [`MAX_STRETCH`] at most.
    pub fn stretch(&self, client: usize, position: u64, length: u64) -> &[u8] {
        let phase = client * STRIDE % PERIOD;
        let start = (position as usize + phase) % PERIOD;
        let length = length.min(MAX_STRETCH as u64) as usize;
        &self.bytes[start..start + length]
    }
}

/// The block in a file in memory, from which it is sent without a copy: a generator that copies and compares would be
/// slower than a server that only copies, and the queues of a bulk load would build up at the wrong end.
pub struct PatternFile {
    file: OwnedFd,
}

impl PatternFile {
    /// Writes the pattern into a file in memory.
    pub fn new(pattern: &Pattern) -> io::Result<PatternFile> {
        let file = memfd_create("pattern", MemfdFlags::CLOEXEC)?;
        let mut rest = &pattern.bytes[..];
        while !rest.is_empty() {
            let count = rustix::io::write(&file, rest)?;
            rest = &rest[count..];
        }
        Ok(PatternFile { file })
    }

    /// Sends bytes of a client's stream, as [`Pattern::stretch`] returns them. Returns how many the kernel accepted.
    pub fn send(&self, stream: impl AsFd, client: usize, position: u64, length: u64) -> io::Result<usize> {
        let phase = client * STRIDE % PERIOD;
        let mut offset = ((position as usize + phase) % PERIOD) as u64;
        Ok(sendfile(stream, &self.file, Some(&mut offset), length.min(MAX_STRETCH as u64) as usize)?)
    }
}

/// Compares `bytes`, received at position `received`, with the client's stream. The error names the first wrong byte.
pub fn verify(pattern: &Pattern, client: usize, received: u64, sent: u64, bytes: &[u8]) -> Result<()> {
    let mut position = received;
    if received + bytes.len() as u64 > sent {
        let more = received + bytes.len() as u64 - sent;
        return Err(format!("connection {client}: {more} bytes more than were sent ({sent})").into());
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let expected = pattern.stretch(client, position, rest.len() as u64);
        let (part, behind) = rest.split_at(expected.len());
        if part != expected {
            let wrong = part.iter().zip(expected).position(|(got, sent)| got != sent).unwrap_or(0);
            let (got, sent) = (part[wrong], expected[wrong]);
            let at = position + wrong as u64;
            return Err(format!("connection {client}: byte {at} came back as {got:#04x}, sent was {sent:#04x}").into());
        }
        position += part.len() as u64;
        rest = behind;
    }
    Ok(())
}
