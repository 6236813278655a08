//! The machine on which the figures were measured.

use std::fs;

use crate::server::counter::Counter;

/// What is recorded about the machine and the run.
pub struct Machine {
    /// The processor's model name.
    pub processor: String,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Which core runs the server and which one the generator.
    pub cores: String,
    /// What counted system calls, or why they were not counted.
    pub counter: Result<&'static str, String>,
    /// Servers that could not be measured, and why.
    pub missing: Vec<String>,
    /// The part of the time during which something else occupied the generator's core.
    pub disturbance: Option<f64>,
}

impl Machine {
    /// Reads /proc and uname(2).
    pub fn record(
        cores: String,
        counter: &Result<Counter, String>,
        missing: &[String],
        disturbance: Option<f64>,
    ) -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let uname = rustix::system::uname();
        Machine {
            processor: model.map_or("unnamed processor", |(_, name)| name).to_owned(),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            cores,
            counter: counter.clone().map(|counter| match counter {
                Counter::Perf => "perf",
                Counter::Strace => "strace",
            }),
            missing: missing.to_vec(),
            disturbance,
        }
    }
}
