//! `--explain`: each connection as TCP lives it, told on stdout while it happens.
//!
//! The [`Explainer`] hears of system calls, and says which segments they mean and which states of RFC 9293 the
//! connection goes through. What no program in user space can see (SYN, ACK, what comes after our close) is
//! inferred, from what must have been before, or from the kernel's own table, and drawn dashed.
//!
//! It lives in the loop, so its work is bounded: a line for a fact, so many lines in a second ([`Diagram`]), a
//! question to the kernel for a line ([`SocketTable`]), and a handful of closed connections followed to their end.

pub mod diagram;
pub mod explainer;
pub mod socket_table;
mod tracked;

pub use explainer::Explainer;
