//! Pages to read: the tour of the code, the known traps, and the tutorial in English and Chinese.
//!
//! They are read in two places. On a code host, their links lead to files, by the definitions at the end of each page. In
//! this documentation, the first definition of a link counts: those of `links.md`, which lead to items.

#![allow(rustdoc::private_intra_doc_links, reason = "private functions are documented, too: see .cargo/config.toml")]

/// How an event loop on mio is written, from the first call to the real thing.
///
#[doc = include_str!("links.md")]
#[doc = include_str!("pictures.md")]
#[doc = include_str!("tour.md")]
pub mod tour {}

/// What goes wrong in event loops, how echod handles it, and which test proves it.
///
#[doc = include_str!("links.md")]
#[doc = include_str!("traps.md")]
pub mod traps {}

/// TCP as seen from inside an echo server, step by step.
///
#[doc = include_str!("links.md")]
#[doc = include_str!("tutorial.md")]
pub mod tutorial {}

/// 重读那篇教程：从服务器内部看 TCP。
///
#[doc = include_str!("links.md")]
#[doc = include_str!("tutorial.zh.md")]
pub mod tutorial_zh {}
