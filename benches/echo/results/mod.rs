//! What was measured, and the statistics on it.
//!
//! - this file: the figures of rounds, servers and scenarios, and ratios of paired rounds
//! - `spread`: median and range

mod spread;

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::generator::new_histogram;
use crate::scenarios::Scenario;
use crate::server::Cpu;

pub use spread::Spread;

/// The results of one scenario.
pub struct Outcome {
    /// The scenario as it was run: its connections may have been capped.
    pub scenario: Scenario,
    /// Messages per second that were due in an open loop.
    pub rate: Option<f64>,
    /// The intended length of a round.
    pub window: Duration,
    /// One row per server.
    pub rows: Vec<Row>,
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
}

/// Costs of one echo that are counted, not timed.
pub struct PerEcho {
    /// System calls.
    pub calls: f64,
    /// Instructions in user space, where the processor counts them.
    pub instructions: Option<f64>,
    /// The part of all cycles that was spent in user space, where the processor counts them.
    pub user_part: Option<f64>,
}

/// One fresh process under load.
pub struct Round {
    /// Messages completed in the window.
    pub echoes: u64,
    /// The length of the window.
    pub window: Duration,
    /// Latencies of messages sent, or due, in the window. In churn, of whole connections.
    pub latency: Histogram<u64>,
    /// CPU time of the server in the window. None if its process is unknown.
    pub cpu: Option<Cpu>,
    /// CPU time of the generator in the window: all of the window, if it spins undisturbed on its own core.
    pub generator: Duration,
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

/// Returns the part of the time during which something else occupied the generator's core, over all rounds.
pub fn disturbance(outcomes: &[Outcome]) -> Option<f64> {
    let rounds = || outcomes.iter().flat_map(|outcome| &outcome.rows).flat_map(|row| &row.rounds);
    let spun: Duration = rounds().map(|round| round.window).sum();
    let got: Duration = rounds().map(|round| round.generator).sum();
    (!spun.is_zero()).then(|| 1.0 - got.as_secs_f64() / spun.as_secs_f64())
}

impl Outcome {
    /// Returns the number of rounds.
    pub fn rounds(&self) -> usize {
        self.rows.first().map_or(0, |row| row.rounds.len())
    }

    /// Echoes per server CPU second as a ratio to bare-epoll's, round by round.
    pub fn cost_ratio(&self, row: &Row) -> Option<Spread> {
        self.ratio(row, "bare-epoll", |round, reference| Some(reference.cpu_per_echo()? / round.cpu_per_echo()?))
    }

    /// The median latency as a ratio to bare-epoll's, likewise.
    pub fn p50_ratio(&self, row: &Row) -> Option<Spread> {
        self.ratio(row, "bare-epoll", |round, reference| Some(round.quantile(0.5)? / reference.quantile(0.5)?))
    }

    /// A ratio to another server, of rounds that ran next to each other.
    pub fn ratio(&self, row: &Row, to: &str, of: impl Fn(&Round, &Round) -> Option<f64>) -> Option<Spread> {
        let other = self.rows.iter().find(|other| other.server == to)?;
        Spread::of(row.rounds.iter().zip(&other.rounds).filter_map(|(round, other)| of(round, other)))
    }
}

impl Row {
    /// Median and range of a figure over the rounds.
    pub fn spread(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }

    /// The part of the CPU time that was spent in user space: by the processor's cycles, or else by the kernel's ticks
    /// of 10 ms over all rounds, which are coarse and miss work that starts on the tick.
    pub fn user_part(&self) -> Option<f64> {
        if let Some(part) = self.counted.as_ref().and_then(|counted| counted.user_part) {
            return Some(part);
        }
        let cpus = || self.rounds.iter().filter_map(|round| round.cpu);
        let user: u64 = cpus().map(|cpu| cpu.user_ticks).sum();
        let system: u64 = cpus().map(|cpu| cpu.system_ticks).sum();
        (user + system > 0).then(|| user as f64 / (user + system) as f64)
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

    /// Seconds of the server's CPU for one echo.
    pub fn cpu_per_echo(&self) -> Option<f64> {
        let cpu = self.cpu?.total.as_secs_f64() / self.echoes as f64;
        (cpu.is_finite() && cpu > 0.0).then_some(cpu)
    }

    /// The latency in seconds below which this part of the messages stayed.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(part) as f64 / 1e9)
    }
}
