//! `--explain`: prints each connection as a TCP sequence diagram while it happens.
//!
//! What lives here: [`explainer`] observes the loop and decides what is printed. `tracked` holds what is known of one connection,
//! and the lines about it. [`diagram`] renders them, within a budget. [`socket_table`] asks the kernel for the state of a socket,
//! by `sock_diag` if possible.
//!
//! What it may use: [`event_loop`](crate::event_loop) for its events, [`listen`](crate::listen), and the non-blocking output of
//! [`daemon`](crate::daemon).

pub mod diagram;
pub mod explainer;
#[cfg(target_os = "linux")]
mod sock_diag;
pub mod socket_table;
mod time;
mod tracked;

pub use explainer::Explainer;
