//! What came out, and the arithmetic on it: medians, spreads, ratios of paired rounds.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::load::new_histogram;
use crate::scenarios::Scenario;
use crate::server::Cpu;

/// All of one scenario.
pub struct Outcome {
    /// What was run, as it was run (its connections may have been capped).
    pub scenario: Scenario,
    /// Messages per second that were due, in an open loop.
    pub rate: Option<f64>,
    /// How long a round was to be.
    pub window: Duration,
    /// One for each server that took part.
    pub rows: Vec<Row>,
}

/// One server in one scenario.
pub struct Row {
    /// Its name.
    pub server: String,
    /// Under load. In churn an echo is a connection.
    pub rounds: Vec<Round>,
    /// Saying nothing.
    pub idle: Vec<Idle>,
    /// What was counted in a pass of its own.
    pub counted: Option<PerEcho>,
}

/// What one echo takes, counted and not timed.
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
    /// In the window.
    pub echoes: u64,
    /// The window.
    pub window: Duration,
    /// Of messages sent, or due, in the window. In churn of whole connections.
    pub latency: Histogram<u64>,
    /// The server's, in the window. None where its process is not known.
    pub cpu: Option<Cpu>,
    /// CPU time of the generator in the window: all of it, where it spins on a core that nobody else wants.
    pub generator: Duration,
}

/// One fresh process that holds idle connections.
pub struct Idle {
    /// How many more than in `base`.
    pub connections: usize,
    /// Resident bytes with the first few connections.
    pub base: u64,
    /// With all, most of which have never said anything.
    pub silent: u64,
    /// With all, after each has echoed one message.
    pub echoed: u64,
    /// CPU time used while nothing happened, and for how long that was.
    pub asleep: (Duration, Duration),
}

/// The middle of some rounds, and how far they lie apart.
#[derive(Clone, Copy)]
pub struct Spread {
    /// Half of the rounds are below.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Spread { median, min: values[0], max: values[values.len() - 1] })
    }
}

/// The part of the time in which something else had the generator's core, over all rounds.
pub fn disturbance(outcomes: &[Outcome]) -> Option<f64> {
    let rounds = || outcomes.iter().flat_map(|outcome| &outcome.rows).flat_map(|row| &row.rounds);
    let spun: Duration = rounds().map(|round| round.window).sum();
    let got: Duration = rounds().map(|round| round.generator).sum();
    (!spun.is_zero()).then(|| 1.0 - got.as_secs_f64() / spun.as_secs_f64())
}

impl Outcome {
    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.rows.first().map_or(0, |row| row.rounds.len())
    }

    /// Echoes per server CPU second against the floor's, each round against the floor's round beside it.
    pub fn against_floor(&self, row: &Row) -> Option<Spread> {
        self.ratio(row, "floor", |round, floor| Some(floor.cpu_per_echo()? / round.cpu_per_echo()?))
    }

    /// The median latency against the floor's, in the same way.
    pub fn p50_against_floor(&self, row: &Row) -> Option<Spread> {
        self.ratio(row, "floor", |round, floor| Some(round.quantile(0.5)? / floor.quantile(0.5)?))
    }

    /// A ratio to another server's, of rounds that ran side by side.
    pub fn ratio(&self, row: &Row, to: &str, of: impl Fn(&Round, &Round) -> Option<f64>) -> Option<Spread> {
        let other = self.rows.iter().find(|other| other.server == to)?;
        Spread::of(row.rounds.iter().zip(&other.rounds).filter_map(|(round, other)| of(round, other)))
    }
}

impl Row {
    /// Median and spread of something over the rounds.
    pub fn spread(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }

    /// The part of the CPU time that was spent in user space: by the processor's cycles, or else by the kernel's ticks
    /// of 10 ms over all rounds, which are coarse, and blind for what begins with the tick.
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

    /// Bytes for one idle connection: never heard of, and after an echo.
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

    /// The latency, in seconds, that this part of the messages stayed below.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(part) as f64 / 1e9)
    }
}
