//! A TCP echo server (RFC 862), written to be read: one thread, one hand-written event loop on mio.
//!
//! - **[The tour](docs::tour)** is the place to start. In about 40 minutes it leads from the first call of mio to the loop
//!   in [`event_loop::server`] and the state machine in [`event_loop::connection`].
//! - [The traps](docs::traps) are what goes wrong in event loops: wrong and right code, and the test that proves it.
//! - The tutorial shows TCP as the server sees it, [in English](docs::tutorial) and [in Chinese](docs::tutorial_zh).
//!
//! [`event_loop`] is the reference. It knows nothing of the modules around it, except for the type of a listening socket.

#![forbid(unsafe_code)]

pub mod daemon;
pub mod docs;
pub mod event_loop;
pub mod explain;
pub mod listen;
pub mod metrics;
