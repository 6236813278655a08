//! What connections are served with. (A craftsman's bench, not a benchmark.)

use crate::metrics::exposition::Traffic;

/// What every connection works with in its turn, one after the other.
#[derive(Debug)]
pub struct Workbench {
    /// Every read goes here, and where the peer takes it, straight out of here again. At least 1 byte.
    pub buffer: Box<[u8]>,
    /// Milliseconds since the loop started. Wraps after 49 days; only differences count.
    pub ms: u32,
    /// Where bytes are counted.
    pub traffic: Traffic,
}

impl Workbench {
    /// A bench with a buffer of so many bytes, at least 1.
    pub fn new(buffer_size: usize) -> Workbench {
        Workbench { buffer: vec![0; buffer_size].into(), ms: 0, traffic: Traffic::default() }
    }
}
