//! Checks of the benchmark itself.
//!
//! - `generator`: servers that misbehave must be caught, and the open loop must see a stall
//! - `statistics`: the arithmetic behind the tables

#![allow(dead_code, unused_imports, reason = "the modules belong to the benchmark, which uses all of them")]

#[path = "../../benches/echo/generator/mod.rs"]
mod generator;
#[path = "../../benches/echo/results/mod.rs"]
mod results;
#[path = "../../benches/echo/scenarios.rs"]
mod scenarios;
#[path = "../../benches/echo/server/mod.rs"]
mod server;

#[path = "generator.rs"]
mod generator_checks;
mod statistics;
