//! Listening sockets: from what the user typed to accepted streams.
//!
//! What lives here: parsing an [`address`], making a [`socket`] from it, the [`listener`] with its errors, and the life of a Unix
//! socket's file ([`unix_file`]). What it may use: nothing else of this crate.

/// Parsing of addresses.
pub mod address;
pub mod listener;
/// Making sockets.
pub mod socket;
/// The files of Unix sockets.
pub mod unix_file;
