//! Listening sockets: from what the user typed to accepted streams.
//!
//! What lives here: [`address`] parses addresses, [`socket`] binds them, [`listener`] accepts connections and classifies the
//! errors, [`stream_options`] sets the socket options of accepted streams, and [`unix_file`] replaces and removes the files of
//! Unix sockets.
//!
//! What it may use: its own files, and nothing else of this crate. As an exception to the layout's rules,
//! [`socket`] reads limits of the kernel in `/proc`.

use std::io;

use rustix::io::Errno;

pub mod address;
pub mod listener;
pub mod socket;
pub mod stream_options;
#[cfg(test)]
mod test_support;
pub mod unix_file;

/// Returns whether the system reported this error number.
fn is_errno(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}
