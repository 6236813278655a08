//! What operators rely on, tested from outside: the sections "Service manager" and "Metrics" of the contract, and how
//! the log reads in the journal.
//!
//! Some tests want a tool that not every machine has. They say so and are skipped; with `ECHOD_REQUIRE_TOOLS=1` in the
//! environment, as in CI, they fail instead.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod activation;
mod bad_http;
mod endpoint;
mod http;
mod journal;
mod manual;
mod metrics;
mod notify;
