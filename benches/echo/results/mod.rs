//! What was measured, and the statistics on it.
//!
//! - this file: the results of rounds, servers and scenarios, and ratios of paired rounds
//! - `compare`: the comparison of two builds
//! - `metrics`: the figures of a round, by name and unit
//! - `spread`: the median and its interval

pub mod compare;
pub mod metrics;
mod spread;

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::generator::new_histogram;
use crate::scenarios::Scenario;
use crate::server::Cpu;

pub use spread::{Spread, skipped_at_each_end};

/// A round is disturbed if something else had one of the two cores for more than this part of the window.
pub const MAX_DISTURBANCE: f64 = 0.05;

/// The kernel's ticks sample user and system time; fewer than this many say nothing about the ratio.
const MIN_TICKS: u64 = 100;

/// The results of one scenario.
pub struct Outcome {
    /// The scenario as it was run.
    pub scenario: Scenario,
    /// The intended length of a round, and of the load before it.
    pub window: Duration,
    pub warm_up: Duration,
    /// One row per server.
    pub rows: Vec<Row>,
    /// The server whose rounds the others are compared with.
    pub reference: Option<String>,
}

/// One server in one scenario.
pub struct Row {
    /// Its name.
    pub server: String,
    /// Rounds under load. In churn, an echo is a connection.
    pub rounds: Vec<Round>,
    /// Rounds with idle connections.
    pub idle: Vec<Idle>,
    /// What was counted in a separate pass.
    pub counted: Option<PerEcho>,
    /// Why the server failed. It has no further rounds.
    pub failure: Option<String>,
}

/// Costs of one echo that are counted, not timed.
pub struct PerEcho {
    /// System calls.
    pub calls: f64,
    /// Instructions in user space, if the processor counts them.
    pub instructions: Option<f64>,
    /// The part of all cycles that was spent in user space, if the processor counts them.
    pub user_part: Option<f64>,
}

/// One fresh process under load.
pub struct Round {
    /// Messages completed in the window.
    pub echoes: u64,
    /// Bytes echoed in the window.
    pub bytes: u64,
    /// The length of the window.
    pub window: Duration,
    /// Latencies of messages sent, or due, in the window. In churn, of whole connections. Beside bulk, of pings.
    pub latency: Histogram<u64>,
    /// Beside bulk: latencies of short connections, from connect(2) to end of file.
    pub new_connections: Option<Histogram<u64>>,
    /// Open loop: how late the generator sent messages that were due.
    pub lateness: Histogram<u64>,
    /// CPU time of the server in the window. None if its process is unknown.
    pub cpu: Option<Cpu>,
    /// Time in the window during which the generator did not run, if it has a core of its own.
    pub generator_lost: Duration,
    /// Time in the window during which something else ran on the server's core, as far as known.
    pub server_lost: Duration,
    /// When the round started, since the start of the benchmark.
    pub started: Duration,
    /// The position of the server in the order of this round.
    pub position: usize,
    /// How many attempts before this one were dropped because they were disturbed.
    pub repeats: u32,
}

/// One fresh process that holds idle connections.
pub struct Idle {
    /// How many connections were added after `base`.
    pub connections: usize,
    /// Resident bytes of the server with the first few connections.
    pub base: u64,
    /// With all connections, most of which have never sent a byte.
    pub silent: u64,
    /// With all connections, after each has echoed one message.
    pub echoed: u64,
    /// CPU time used while nothing happened, and how long that lasted.
    pub asleep: (Duration, Duration),
}

impl Outcome {
    /// Returns the number of rounds.
    pub fn rounds(&self) -> usize {
        self.rows.iter().map(|row| row.rounds.len().max(row.idle.len())).max().unwrap_or(0)
    }

    /// Work per server CPU second as a ratio to the reference, round by round. None for the reference itself.
    pub fn cost_ratio(&self, row: &Row) -> Option<Spread> {
        self.ratio(row, |round, reference| Some(round.efficiency()? / reference.efficiency()?))
    }

    /// The median latency as a ratio to the reference, likewise.
    pub fn p50_ratio(&self, row: &Row) -> Option<Spread> {
        self.ratio(row, |round, reference| Some(round.quantile(0.5)? / reference.quantile(0.5)?))
    }

    fn ratio(&self, row: &Row, of: impl Fn(&Round, &Round) -> Option<f64>) -> Option<Spread> {
        let reference = self.reference.as_ref().filter(|name| **name != row.server)?;
        let other = self.rows.iter().find(|other| other.server == *reference)?;
        Spread::of(row.rounds.iter().zip(&other.rounds).filter_map(|(round, other)| of(round, other)))
    }

    /// Returns how many rounds were disturbed, how many there were, and the largest disturbance.
    pub fn disturbed(&self) -> (usize, usize, f64) {
        let parts: Vec<f64> = self.rows.iter().flat_map(|row| &row.rounds).map(|round| round.disturbance()).collect();
        let disturbed = parts.iter().filter(|part| **part > MAX_DISTURBANCE).count();
        (disturbed, parts.len(), parts.iter().copied().fold(0.0, f64::max))
    }
}

impl Row {
    /// Returns a row without results.
    pub fn new(server: &str) -> Row {
        Row { server: server.to_owned(), rounds: Vec::new(), idle: Vec::new(), counted: None, failure: None }
    }

    /// Median and interval of a figure over the rounds.
    pub fn spread(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }

    /// The part of the CPU time that was spent in user space: by the processor's cycles, or else by the kernel's ticks
    /// over all rounds, if there are at least [`MIN_TICKS`].
    pub fn user_part(&self) -> Option<f64> {
        if let Some(part) = self.counted.as_ref().and_then(|counted| counted.user_part) {
            return Some(part);
        }
        let cpus = || self.rounds.iter().filter_map(|round| round.cpu);
        let user: u64 = cpus().map(|cpu| cpu.user_ticks).sum();
        let system: u64 = cpus().map(|cpu| cpu.system_ticks).sum();
        (user + system >= MIN_TICKS).then(|| user as f64 / (user + system) as f64)
    }

    /// The latencies of all rounds together.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = new_histogram();
        for round in &self.rounds {
            all.add(&round.latency).expect("all have the same bounds");
        }
        all
    }

    /// Bytes per idle connection: one that never sent a byte, and one after an echo.
    pub fn bytes_per_connection(&self) -> Option<(Spread, Spread)> {
        let each = |idle: &Idle, resident: u64| (resident as f64 - idle.base as f64) / idle.connections as f64;
        let silent = Spread::of(self.idle.iter().map(|idle| each(idle, idle.silent)))?;
        let echoed = Spread::of(self.idle.iter().map(|idle| each(idle, idle.echoed)))?;
        Some((silent, echoed))
    }
}

impl Round {
    /// Echoes per second.
    pub fn rate(&self) -> f64 {
        self.echoes as f64 / self.window.as_secs_f64()
    }

    /// Echoed bytes per second.
    pub fn byte_rate(&self) -> f64 {
        self.bytes as f64 / self.window.as_secs_f64()
    }

    /// Seconds of the server's CPU per echo.
    pub fn cpu_per_echo(&self) -> Option<f64> {
        let cpu = self.cpu?.total.as_secs_f64() / self.echoes as f64;
        (cpu.is_finite() && cpu > 0.0).then_some(cpu)
    }

    /// Bytes echoed per second of the server's CPU. Proportional to echoes per CPU second, and also known for streams.
    pub fn efficiency(&self) -> Option<f64> {
        let efficiency = self.bytes as f64 / self.cpu?.total.as_secs_f64();
        (efficiency.is_finite() && efficiency > 0.0).then_some(efficiency)
    }

    /// The part of one core that the server used.
    pub fn utilization(&self) -> Option<f64> {
        Some(self.cpu?.total.as_secs_f64() / self.window.as_secs_f64())
    }

    /// The latency in seconds below which this part of the messages stayed.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        quantile(&self.latency, part)
    }

    /// The part of the window during which something else had the generator's or the server's core, whichever is larger.
    pub fn disturbance(&self) -> f64 {
        self.generator_lost.max(self.server_lost).as_secs_f64() / self.window.as_secs_f64()
    }
}

/// Returns a quantile in seconds, or None of an empty histogram.
pub fn quantile(histogram: &Histogram<u64>, part: f64) -> Option<f64> {
    (!histogram.is_empty()).then(|| histogram.value_at_quantile(part) as f64 / 1e9)
}
