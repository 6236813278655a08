//! Where a server listens.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use socket2::{Domain, SockAddr};

/// The address of one listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A path, or an abstract name after a NUL byte.
    Unix(PathBuf),
}

impl Address {
    /// Parses `PORT` (on localhost), `HOST:PORT`, `unix:PATH` or `unix:@NAME`, with or without the `tcp://` and `unix://`
    /// that servers print. A name may have several addresses.
    pub fn parse(text: &str) -> Result<Vec<Address>, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = path.strip_prefix('@').map_or_else(|| path.to_owned(), |name| format!("\0{name}"));
            SockAddr::unix(&path).map_err(|error| error.to_string())?;
            return if matches!(path.as_str(), "" | "\0") {
                Err("missing path".to_owned())
            } else {
                Ok(vec![Address::Unix(path.into())])
            };
        }
        let text = text.strip_prefix("tcp://").unwrap_or(text);
        let resolved = match text.parse::<u16>() {
            Ok(port) => ("localhost", port).to_socket_addrs(),
            Err(_) if !text.contains(':') => return Err(format!("missing port, e.g. {text}:9999")),
            Err(_) => text.to_socket_addrs(),
        };
        let addresses: Vec<Address> = resolved.map_err(|error| error.to_string())?.map(Address::Tcp).collect();
        if addresses.is_empty() { Err("no address found".to_owned()) } else { Ok(addresses) }
    }

    pub(super) fn domain(&self) -> Domain {
        match self {
            Address::Tcp(address) => Domain::for_address(*address),
            Address::Unix(_) => Domain::UNIX,
        }
    }

    pub(super) fn to_sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Address::Tcp(address) => Ok((*address).into()),
            Address::Unix(path) => SockAddr::unix(path),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(formatter, "{address}"),
            Address::Unix(path) => write!(formatter, "unix:{}", path.to_string_lossy().replacen('\0', "@", 1)),
        }
    }
}
