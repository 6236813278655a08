//! Pages to read: the tour of the code, the known traps, and the tutorial in English and Chinese.
//!
//! They are read in two places. On a code host, their links lead to files, by the definitions at the end of each page. In
//! this documentation, the first definition of a link counts: those of `links.md`, which lead to items.

#![allow(rustdoc::private_intra_doc_links, reason = "private functions are documented, too: see .cargo/config.toml")]

#[doc = include_str!("links.md")]
#[doc = include_str!("pictures.md")]
#[doc = include_str!("tour.md")]
pub mod tour {}

#[doc = include_str!("links.md")]
#[doc = include_str!("traps.md")]
pub mod traps {}

/// TCP as seen from inside an echo server, step by step.
///
#[doc = include_str!("links.md")]
#[doc = include_str!("tutorial.md")]
pub mod tutorial {}

/// 从服务器内部，一步一步看 TCP。
///
#[doc = include_str!("links.md")]
#[doc = include_str!("tutorial.zh.md")]
pub mod tutorial_zh {}
