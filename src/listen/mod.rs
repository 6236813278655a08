//! Listening sockets: from what the user typed to accepted streams.
//!
//! What lives here: parsing an [`address`], making a [`socket`] from it, the [`listener`] with its errors, and the life of a Unix
//! socket's file ([`unix_file`]). What it may use: nothing else of this crate.

use std::io;

use rustix::io::Errno;

pub mod address;
pub mod listener;
pub mod socket;
#[cfg(test)]
mod test_support;
pub mod unix_file;

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}
