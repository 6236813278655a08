//! Memory for pending output: bounded for all connections together, returned to the system, and allowed to run out.
//!
//! A stalled connection keeps the part of its last read that its peer has not taken. That is the only memory that peers make
//! grow, so it gets care that the rest of the loop does not need:
//!
//! - **A bound** (`--max-buffered`). The closer its sum comes to the bound, the less a connection may read at a time
//!   ([`OutputMemory::read_limit`]), down to [`MIN_READ`] bytes. What a connection can keep is what it read, so the sum never
//!   exceeds the bound by more than `MIN_READ` bytes per connection. The limit changes only when a connection stalls or recovers.
//! - **Mappings instead of the heap.** malloc(3) puts blocks of 64 KiB on the heap, where one small block above them keeps
//!   everything below it resident. Anonymous mappings are returned to the system one by one. The largest are cached, at most
//!   as many as are in use, so that a busy peer does not map and unmap for each of its stalls.
//! - **Failure is an answer.** When the system has no memory, a reserve that was allocated in advance takes what has been read
//!   already. From then on nothing is read that could not be written at once, until the reserve can be allocated again.

use memmap2::MmapMut;

use crate::event_loop::pending::Pending;

/// The least that a connection may read at a time, in bytes, however little memory is left. It is also the size up to which
/// output is kept on the heap: a mapping takes a page of 4 KiB at least.
pub const MIN_READ: usize = 512;

/// Mappings are multiples of this, in bytes. Where pages are larger, a mapping takes up more than is counted.
const PAGE: usize = 4096;

/// Blocks that are cached although no connection is stalled: 1 MiB with the default buffer.
const MIN_CACHED_BLOCKS: usize = 8;

/// The most blocks that are ever cached: 2 GiB with the default buffer.
const MAX_CACHED_BLOCKS: usize = 16 * 1024;

/// Address space kept free for everything else that allocates, until memory for output runs out for the first time: log lines,
/// metrics, the queues of the standard library.
const HEADROOM: usize = 256 * 1024;

/// A piece of memory for pending output.
#[derive(Debug)]
pub enum Block {
    /// Small output.
    Heap(Vec<u8>),
    /// Whole pages.
    Mapped(MmapMut),
}

impl Block {
    /// Returns the number of bytes that this block takes up.
    pub fn size(&self) -> usize {
        match self {
            Block::Heap(bytes) => bytes.capacity(),
            Block::Mapped(pages) => pages.len(),
        }
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Block::Heap(bytes) => bytes,
            Block::Mapped(pages) => pages,
        }
    }

    fn on_heap(bytes: &[u8]) -> Option<Block> {
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes.len()).ok()?;
        copy.extend_from_slice(bytes);
        Some(Block::Heap(copy))
    }
}

/// What is used when the system has no memory, allocated in advance.
#[derive(Debug)]
struct Reserve {
    /// A block of the size of the scratch buffer. It is not touched, so it is address space, not memory.
    block: Vec<u8>,
    pending: Box<[Pending; 1]>,
    _headroom: Vec<u8>,
}

/// The memory for pending output of all connections.
#[derive(Debug)]
pub struct OutputMemory {
    /// The bound for `in_use`, in bytes.
    max_bytes: usize,
    /// Bytes that connections hold, by the sizes of their blocks.
    in_use: usize,
    /// The size of the scratch buffer, and so of the largest block.
    block_size: usize,
    /// Free blocks of `block_size` bytes, and how many of that size are in use.
    cache: Vec<MmapMut>,
    blocks_in_use: usize,
    reserve: Option<Reserve>,
}

impl OutputMemory {
    /// Creates the memory for `max_bytes` of output, read with a scratch buffer of `block_size` bytes.
    pub fn new(max_bytes: usize, block_size: usize) -> OutputMemory {
        let mut cache = Vec::new();
        let _ = cache.try_reserve_exact((max_bytes / block_size).min(MAX_CACHED_BLOCKS));
        let mut memory = OutputMemory { max_bytes, in_use: 0, block_size, cache, blocks_in_use: 0, reserve: None };
        memory.refill_reserve();
        memory
    }

    /// Returns the number of bytes that connections hold.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Returns how many bytes a connection may read now. 0 means that memory to keep them is lacking: see
    /// [`Connection::serve`](crate::event_loop::connection::Connection::serve).
    pub fn read_limit(&mut self) -> usize {
        if self.reserve.is_none() && !self.refill_reserve() {
            return 0;
        }
        self.max_bytes.saturating_sub(self.in_use).max(MIN_READ).min(self.block_size)
    }

    /// Keeps a copy of `bytes`, at most [`read_limit`](OutputMemory::read_limit) of them. This cannot fail, because the reserve
    /// is there: without it, nothing may be read.
    #[inline(never)]
    pub fn keep(&mut self, bytes: &[u8]) -> Box<[Pending; 1]> {
        let pending = match self.allocate(bytes).and_then(|block| try_box(Pending::new(block, bytes.len()))) {
            Some(pending) => pending,
            None => self.use_reserve(bytes),
        };
        self.in_use += pending[0].size();
        self.blocks_in_use += usize::from(self.is_whole(pending[0].size()));
        pending
    }

    /// Takes a block back when its output has been written, or its connection is closed.
    #[inline(never)]
    pub fn release(&mut self, [pending]: [Pending; 1]) {
        let size = pending.size();
        self.in_use -= size;
        self.blocks_in_use -= usize::from(self.is_whole(size));
        let max_cached = self.blocks_in_use.max(MIN_CACHED_BLOCKS);
        let has_room = self.in_use + (self.cache.len() + 1) * self.block_size <= self.max_bytes;
        if let Block::Mapped(pages) = pending.into_block()
            && pages.len() == self.block_size
            && self.cache.len() < max_cached.min(self.cache.capacity())
            && has_room
        {
            self.cache.push(pages);
        }
        self.cache.truncate(max_cached); // Dropping a mapping is munmap(2).
    }

    fn is_whole(&self, size: usize) -> bool {
        size == self.block_size
    }

    /// Allocates a block and copies `bytes` into it. `None`: the system has no memory.
    fn allocate(&mut self, bytes: &[u8]) -> Option<Block> {
        // More than half a block takes a whole one, so that it can be cached. Pages that are not touched take no memory.
        let is_whole = bytes.len() > self.block_size / 2;
        let size = if is_whole { self.block_size } else { bytes.len().next_multiple_of(PAGE) };
        let is_within_bound = self.in_use + self.cache.len() * self.block_size + size <= self.max_bytes;
        let cached = if is_whole { self.cache.pop() } else { None };
        let mapping = match cached {
            None if bytes.len() > MIN_READ && is_within_bound => MmapMut::map_anon(size).ok(),
            cached => cached,
        };
        match mapping {
            Some(mut pages) => {
                pages[..bytes.len()].copy_from_slice(bytes);
                Some(Block::Mapped(pages))
            }
            // Small, at the bound, or there can be no more mappings (vm.max_map_count).
            None => Block::on_heap(bytes),
        }
    }

    fn use_reserve(&mut self, bytes: &[u8]) -> Box<[Pending; 1]> {
        let Reserve { mut block, mut pending, .. } = self.reserve.take().expect("nothing is read without a reserve");
        self.cache.clear();
        block.extend_from_slice(bytes); // It has the capacity of any read, so this does not allocate.
        pending[0] = Pending::new(Block::Heap(block), bytes.len());
        pending
    }

    /// Allocates the reserve. Returns whether it is there.
    #[cold]
    fn refill_reserve(&mut self) -> bool {
        self.reserve = Reserve::allocate(self.block_size);
        self.reserve.is_some()
    }
}

impl Reserve {
    fn allocate(block_size: usize) -> Option<Reserve> {
        let (mut block, mut headroom) = (Vec::new(), Vec::new());
        block.try_reserve_exact(block_size).ok()?;
        headroom.try_reserve_exact(HEADROOM).ok()?;
        let pending = try_box(Pending::new(Block::Heap(Vec::new()), 0))?;
        Some(Reserve { block, pending, _headroom: headroom })
    }
}

/// Moves a value to the heap, or returns `None` if the allocation fails. An array of one, because of all fallible allocations
/// only those of `Vec` are stable.
fn try_box<T>(value: T) -> Option<Box<[T; 1]>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(1).ok()?;
    vec.push(value);
    vec.into_boxed_slice().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 64 * 1024;

    /// Returns whether this output is kept in a mapping, and with which size.
    fn kept(memory: &mut OutputMemory, len: usize) -> (bool, usize) {
        let pending = memory.keep(&vec![b'x'; len]);
        let is_mapped = matches!(pending[0].block(), Block::Mapped(_));
        let size = pending[0].size();
        memory.release(*pending);
        (is_mapped, size)
    }

    #[test]
    fn large_output_is_mapped_and_small_on_heap() {
        let mut memory = OutputMemory::new(64 << 20, BLOCK);
        assert_eq!(kept(&mut memory, 1), (false, 1));
        assert_eq!(kept(&mut memory, MIN_READ), (false, MIN_READ));
        assert_eq!(kept(&mut memory, MIN_READ + 1), (true, PAGE));
        assert_eq!(kept(&mut memory, BLOCK / 2 + 1), (true, BLOCK), "it can be cached");
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn reads_shrink_near_the_bound_and_keep_it() {
        let max_bytes = 10 * BLOCK;
        let mut memory = OutputMemory::new(max_bytes, BLOCK);
        let mut held = Vec::new();
        assert_eq!(memory.read_limit(), BLOCK);
        for _ in 0..100 {
            let limit = memory.read_limit();
            assert!((MIN_READ..=BLOCK).contains(&limit));
            held.push(memory.keep(&vec![b'x'; limit]));
            assert!(memory.in_use() <= max_bytes + held.len() * MIN_READ, "{} bytes are in use", memory.in_use());
        }
        assert_eq!(memory.read_limit(), MIN_READ, "connections are served even at the bound");
        held.into_iter().for_each(|pending| memory.release(*pending));
        assert_eq!((memory.in_use(), memory.read_limit()), (0, BLOCK));
    }

    #[test]
    fn cache_is_no_larger_than_what_is_in_use() {
        let mut memory = OutputMemory::new(usize::MAX / 2, BLOCK);
        let mut held: Vec<_> = (0..1000).map(|_| memory.keep(&vec![b'x'; BLOCK])).collect();
        while let Some(pending) = held.pop() {
            memory.release(*pending);
            assert!(memory.cache.len() <= held.len().max(MIN_CACHED_BLOCKS), "{} cached", memory.cache.len());
        }
        assert_eq!(memory.cache.len(), MIN_CACHED_BLOCKS);
        let reused = memory.keep(&vec![b'x'; BLOCK]);
        assert_eq!(memory.cache.len(), MIN_CACHED_BLOCKS - 1);
        memory.release(*reused);
    }

    #[test]
    fn cache_counts_toward_the_bound() {
        let mut memory = OutputMemory::new(2 * BLOCK, BLOCK);
        let held = [memory.keep(&vec![b'x'; BLOCK]), memory.keep(&vec![b'x'; BLOCK])];
        held.into_iter().for_each(|pending| memory.release(*pending));
        assert!(memory.cache.len() <= 2);
        let first = memory.keep(&vec![b'x'; BLOCK]);
        assert!(memory.in_use() + memory.cache.len() * BLOCK <= 2 * BLOCK);
        memory.release(*first);
    }

    #[test]
    fn reserve_keeps_the_bytes_and_is_needed_to_read() {
        let mut memory = OutputMemory::new(64 << 20, BLOCK);
        let pending = memory.use_reserve(b"read before memory ran out");
        assert_eq!(pending[0].remaining(), b"read before memory ran out");
        assert_eq!(pending[0].size(), BLOCK);
        assert!(memory.reserve.is_none());
        assert_eq!(memory.read_limit(), BLOCK, "there is memory again");
        assert!(memory.reserve.is_some());
    }
}
