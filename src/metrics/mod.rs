//! Metrics: `GET /metrics` for Prometheus and `GET /healthz`, served by the event loop itself.
//!
//! What lives here: [`endpoint`] accepts HTTP connections, `slots` serves them, `request` parses requests and builds the
//! response, and `reserve` keeps descriptors for them. [`exposition`] is the Prometheus text, **the place to add a metric**, with
//! [`durations`] (the histogram of iterations) and [`process`] (the `process_*` series). The counters themselves belong to the
//! loop: [`event_loop::counters`](crate::event_loop::counters).
//!
//! What it may use: [`event_loop`](crate::event_loop) and [`listen`](crate::listen).

pub mod durations;
pub mod endpoint;
pub mod exposition;
pub mod process;
mod request;
mod reserve;
mod slots;
