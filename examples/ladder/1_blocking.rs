//! Rung 1: the tutorial's server in Rust, with a loop around read and write.
//!
//! New: a connection is read until the peer's FIN, which is a read of 0 bytes, and is closed only
//! then. `write_all` repeats write(2) until every byte is written. Bytes are not decoded as text.
//! An error ends only its own connection.
//!
//! Still broken: one client at a time. While `echo` waits for one peer, all others wait for `echo`.
//!
//!     cargo run --example 1_blocking
//!     cargo run --example conformance -- 127.0.0.1:9999 many-at-once

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

pub(crate) fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".into());
    let listener = TcpListener::bind(address)?;
    writeln!(io::stdout(), "listening on tcp://{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept()?;
        let _ = echo(stream); // An error ends only this connection.
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}
