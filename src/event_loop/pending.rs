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
}

impl Pending {
    /// Creates pending output from the first `len` bytes of a block.
    pub fn new(block: Block, len: usize) -> Pending {
        debug_assert!(len <= block.bytes().len());
        Pending { block, len, written: 0 }
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
