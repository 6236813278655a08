//! What the clients say, and how they know their own words again.
//!
//! Each client sends an endless stream of its own: the same block of random bytes over and over, begun at
//! another place in it. The block's length is a prime, so that a message that was lost, repeated or
//! sent to the wrong client does not look like the right one. A stretch of it is contiguous in memory: it is sent and
//! compared without a copy, at the speed of memcmp(3).

/// The length after which a client's stream repeats: the largest prime below 65,536.
const PERIOD: usize = 65_521;

/// The longest stretch that [`Pattern::stretch`] returns at once. A message of 64 KiB fits: it is one write(2).
const LONGEST: usize = 2 * PERIOD;

/// How far apart two neighbouring clients begin.
const STRIDE: usize = 7_919;

/// The block three times over, so that no stretch wraps.
pub struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    /// The same bytes in every run: a failure can be repeated.
    pub fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // xorshift64: random enough that no stretch of it looks like another.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        Pattern { bytes: bytes.repeat(3) }
    }

    /// Bytes of this client's stream from `position` on: `length` of them, or [`LONGEST`] at most.
    pub fn stretch(&self, client: usize, position: u64, length: u64) -> &[u8] {
        let phase = client * STRIDE % PERIOD;
        let start = (position as usize + phase) % PERIOD;
        let length = length.min(LONGEST as u64) as usize;
        &self.bytes[start..start + length]
    }
}
