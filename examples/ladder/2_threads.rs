//! Rung 2: a thread for each connection.
//!
//! New: `echo` may block, because only its own peer has to wait. The kernel's scheduler shares the
//! processors between the threads, so the server is fair without any code for it.
//!
//! Still broken: cost and limits. Each thread reserves 2 MiB of address space for its stack. The
//! server ends at the first limit that it reaches: `spawn` panics without memory, and
//! accept(2) fails without descriptors (T16).
//!
//!     cargo build --examples
//!     cargo run --example conformance -- --spawn 'target/debug/examples/2_threads 127.0.0.1:{port}'

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

pub(crate) fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".into());
    let listener = TcpListener::bind(address)?;
    writeln!(io::stdout(), "listening on tcp://{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(|| echo(stream));
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
