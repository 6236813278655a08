//! Helpers for the unit tests of this folder.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::listen::address::Address;
use crate::listen::listener::Listener;
use crate::listen::socket::ListenOptions;

pub const OPTIONS: ListenOptions = ListenOptions { backlog: 16, reuse_port: false, socket_buffer: None };

pub fn address(text: &str) -> Address {
    Address::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
}

pub fn bind(text: &str) -> Listener {
    let mut listeners = address(text).bind(&OPTIONS).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(listeners.len(), 1, "{text}");
    listeners.remove(0)
}

pub fn refused(text: &str) -> String {
    address(text).bind(&OPTIONS).expect_err("bind should fail").to_string()
}

/// Retries until `attempt` no longer returns `WouldBlock`, because loopback does not deliver instantly.
pub fn soon<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            result => return result.expect("success within 10 s"),
        }
    }
}

pub fn connect(port: u16, ip: &str) -> io::Result<std::net::TcpStream> {
    std::net::TcpStream::connect((ip, port))
}

/// A temporary directory, removed when dropped.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("echod-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        Directory(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn unix(&self, name: &str) -> String {
        format!("unix:{}", self.path(name).display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
