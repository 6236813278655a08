//! The daemon around the event loop: command line, log, signals, limits and service manager.
//!
//! What lives here: [`options`] defines the command line, with [`values`] for parsing and [`early_exit`] for help and errors.
//! [`output`] writes to stdout and stderr without blocking, if need be through a thread; [`logging`] and [`journal`] build the
//! log on it. [`signals`], [`limits`] and [`startup`] set up the process, [`systemd`] talks to a service manager, and
//! [`monitoring`] connects it and the metrics endpoint to the event loop. [`check`] is the client of `--check`.
//!
//! What it may use: [`listen`](crate::listen), [`event_loop`](crate::event_loop) and [`metrics`](crate::metrics).

pub mod check;
pub mod early_exit;
pub mod journal;
pub mod limits;
pub mod logging;
pub mod monitoring;
pub mod options;
pub mod output;
pub mod signals;
pub mod startup;
pub mod systemd;
pub mod values;
mod writer_thread;
