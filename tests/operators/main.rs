//! Black-box tests of what operators rely on: service manager, metrics, and the log in the journal.
//!
//! Some tests need a tool that not every machine has. They are skipped with a message; with `ECHOD_REQUIRE_TOOLS=1` in the
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
