//! Checks of the benchmark itself.
//!
//! - `generator`: servers that misbehave must be caught, and the open loop must see a stall
//! - `black_box`: the program as users start it: its options, its labels, and what it leaves behind
//! - `statistics`: the arithmetic behind the tables

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "skipped tests say why; the benchmark prints")]
#![allow(dead_code, unused_imports, reason = "the modules belong to the benchmark, which uses all of them")]

#[path = "../../benches/echo/baseline.rs"]
mod baseline;
#[path = "../../benches/echo/bench.rs"]
mod bench;
#[path = "../../benches/echo/choice.rs"]
mod choice;
#[path = "../../benches/echo/generator/mod.rs"]
mod generator;
#[path = "../../benches/echo/options.rs"]
mod options;
#[path = "../../benches/echo/peers/mod.rs"]
mod peers;
#[path = "../../benches/echo/progress.rs"]
mod progress;
#[path = "../../benches/echo/results/mod.rs"]
mod results;
#[path = "../../benches/echo/scenarios.rs"]
mod scenarios;
#[path = "../../benches/echo/server/mod.rs"]
mod server;

mod black_box;
#[path = "generator.rs"]
mod generator_checks;
mod statistics;
