//! The figures of a round, by name and unit: for the records, and for the comparison of two builds.

use super::{Round, quantile};
use crate::scenarios::Work;

/// The unit of a figure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    PerSecond,
    BytesPerSecond,
    Part,
}

impl Unit {
    /// Its name in JSON and CSV.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::PerSecond => "1/s",
            Unit::BytesPerSecond => "B/s",
            Unit::Part => "1",
        }
    }
}

/// A figure of a round.
pub struct Metric {
    /// Its name in JSON and CSV.
    pub name: &'static str,
    pub unit: Unit,
    pub lower_is_better: bool,
    /// Whether two builds are compared by it.
    pub is_compared: bool,
    pub of: fn(&Round) -> Option<f64>,
}

const fn lower(name: &'static str, is_compared: bool, of: fn(&Round) -> Option<f64>) -> Metric {
    Metric { name, unit: Unit::Seconds, lower_is_better: true, is_compared, of }
}

const fn higher(name: &'static str, unit: Unit, is_compared: bool, of: fn(&Round) -> Option<f64>) -> Metric {
    Metric { name, unit, lower_is_better: false, is_compared, of }
}

const UTILIZATION: Metric = Metric {
    name: "server_utilization",
    unit: Unit::Part,
    lower_is_better: true,
    is_compared: false,
    of: Round::utilization,
};

const ECHO: &[Metric] = &[
    higher("echoes_per_second", Unit::PerSecond, false, |round| Some(round.rate())),
    lower("cpu_per_echo", true, Round::cpu_per_echo),
    UTILIZATION,
    lower("latency_p50", true, |round| round.quantile(0.5)),
    lower("latency_p90", false, |round| round.quantile(0.9)),
    lower("latency_p99", false, |round| round.quantile(0.99)),
    lower("latency_p99.9", false, |round| round.quantile(0.999)),
    lower("latency_max", false, |round| round.quantile(1.0)),
    lower("generator_lateness_p99", false, |round| quantile(&round.lateness, 0.99)),
];

const BULK: &[Metric] = &[
    higher("bytes_per_second", Unit::BytesPerSecond, true, |round| Some(round.byte_rate())),
    higher("bytes_per_server_cpu_second", Unit::BytesPerSecond, true, Round::efficiency),
    UTILIZATION,
];

const BESIDE_BULK: &[Metric] = &[
    lower("ping_p50", false, |round| round.quantile(0.5)),
    lower("ping_p99", true, |round| round.quantile(0.99)),
    lower("ping_max", false, |round| round.quantile(1.0)),
    lower("new_connection_p50", true, |round| quantile(round.new_connections.as_ref()?, 0.5)),
    lower("new_connection_p99", false, |round| quantile(round.new_connections.as_ref()?, 0.99)),
    higher("bytes_per_second", Unit::BytesPerSecond, true, |round| Some(round.byte_rate())),
    higher("bytes_per_server_cpu_second", Unit::BytesPerSecond, true, Round::efficiency),
    UTILIZATION,
];

/// Returns the figures of a kind of load. Idle connections have none: their rounds are of another type.
pub fn of(work: Work) -> &'static [Metric] {
    match work {
        Work::Closed { .. } | Work::Open { .. } | Work::Churn { .. } => ECHO,
        Work::Stream { .. } => BULK,
        Work::BesideBulk { .. } => BESIDE_BULK,
        Work::Idle { .. } => &[],
    }
}
