//! The usual echo server on tokio.

use std::convert::Infallible;
use std::io;

use super::{ANY_PORT, announce};

/// Serves each connection in a task with a buffer of its own, `read` and `write_all`, on a current-thread runtime.
pub fn serve(buffer_bytes: usize) -> io::Result<Infallible> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(ANY_PORT).await?;
        announce(listener.local_addr()?)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut buffer = vec![0; buffer_bytes];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}
