//! Which core runs the server and which one the generator.

use rustix::thread::CpuSet;

use crate::generator::Result;

/// The cores of server and generator.
pub struct Cores {
    /// None if both share one core.
    split: Option<(usize, usize)>,
    count: usize,
}

impl Cores {
    /// Chooses the first and the last core that this process may use: with two hardware threads per core, these two rarely
    /// share one.
    pub fn choose() -> Result<Cores> {
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let split = match allowed[..] {
            [server, .., generator] => Some((server, generator)),
            _ => None,
        };
        let cores = Cores { split, count: allowed.len() };
        cores.pin_to_generator()?;
        Ok(cores)
    }

    /// Returns whether the generator has a core of its own.
    pub fn are_apart(&self) -> bool {
        self.split.is_some()
    }

    /// Describes the choice, for the tables.
    pub fn describe(&self) -> String {
        match self.split {
            Some((server, generator)) => {
                format!("{} cores, server on core {server}, generator on core {generator}", self.count)
            }
            None => "one core for server and generator".to_owned(),
        }
    }

    /// Moves this thread, and the children that it will start, to the server's core.
    pub(super) fn pin_to_server(&self) -> Result<()> {
        self.split.map_or(Ok(()), |(server, _)| pin(server))
    }

    /// Moves this thread back to the generator's core.
    pub(super) fn pin_to_generator(&self) -> Result<()> {
        self.split.map_or(Ok(()), |(_, generator)| pin(generator))
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
