//! Output that could not be written yet.

use crate::event_loop::memory::Block;

/// The part of an answer that the socket did not accept. A connection that has one is *stalled*.
///
/// Its memory comes from [`OutputMemory`](crate::event_loop::memory::OutputMemory) and goes back there.
#[derive(Debug)]
pub struct Pending {
    block: Block,
    /// How many bytes of `block` are output, and how many of those have been written since.
    len: usize,
    written: usize,
    /// Makes this larger than 128 bytes. malloc(3) of glibc does not merge smaller pieces that are freed (fastbins, mallopt(3),
    /// M_MXFAST): between blocks of small output they would keep the memory of a peak from being returned to the system.
    _padding: [u64; 12],
}

const _: () = assert!(size_of::<Pending>() > 128);

impl Pending {
    /// Creates pending output from the first `len` bytes of a block.
    pub fn new(block: Block, len: usize) -> Pending {
        debug_assert!(len <= block.bytes().len());
        Pending { block, len, written: 0, _padding: [0; 12] }
    }

    /// Returns the bytes still to be written.
    pub fn remaining(&self) -> &[u8] {
        &self.block.bytes()[self.written..self.len]
    }

    /// Records that `count` more bytes have been written, at most all that remain.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
    }

    /// Returns how many bytes of memory it takes up.
    pub fn size(&self) -> usize {
        self.block.size()
    }

    /// Returns the memory.
    pub fn into_block(self) -> Block {
        self.block
    }

    /// Returns the memory, to look at it.
    #[cfg(test)]
    pub fn block(&self) -> &Block {
        &self.block
    }
}
