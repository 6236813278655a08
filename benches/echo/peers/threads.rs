//! The usual echo server on the standard library.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::thread;

use super::{ANY_PORT, announce};

/// Serves each connection in a thread with blocking reads and writes.
pub fn serve<const BUFFER_BYTES: usize>() -> io::Result<Infallible> {
    let listener = std::net::TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        thread::spawn(move || {
            let mut buffer = [0; BUFFER_BYTES];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        });
    }
}
