//! The state of TCP sockets as the kernel reports it in `/proc/net/tcp` and `/proc/net/tcp6`.
//!
//! These tables show what a client cannot observe: how many bytes the daemon has not read yet, how
//! many connections are pending in a backlog, and the TCP state of the daemon's socket.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A TCP connection state (RFC 9293, 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    Established,
    FinWait1,
    FinWait2,
    TimeWait,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// SYN-SENT, SYN-RECEIVED or CLOSED.
    Other,
}

/// One end of a TCP connection, or a listener.
#[derive(Clone, Copy, Debug)]
pub struct TcpSocket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: TcpState,
    /// Bytes that the remote end's kernel has not acknowledged.
    pub unacknowledged: usize,
    /// Bytes that the owner has not read; for a listener, the number of pending connections.
    pub unread: usize,
}

/// Returns the socket with these two addresses, if there is one.
pub fn tcp_socket(local: SocketAddr, remote: SocketAddr) -> Option<TcpSocket> {
    tcp_sockets(local.port()).into_iter().find(|socket| socket.local == local && socket.remote == remote)
}

/// Returns the client's socket of every connection to the daemon at `address`.
///
/// Reads the table once for all of them, because it is long when thousands of other connections are
/// in TIME-WAIT.
pub fn peers_of(address: SocketAddr) -> Vec<TcpSocket> {
    tcp_sockets(address.port()).into_iter().filter(|socket| socket.remote == address).collect()
}

/// Returns the number of connections in the backlog of the listener at `address`.
#[track_caller]
pub fn pending_connections(address: SocketAddr) -> usize {
    let listener = tcp_sockets(address.port())
        .into_iter()
        .find(|socket| socket.local == address && socket.state == TcpState::Listen);
    listener.unwrap_or_else(|| panic!("no socket is listening on {address}")).unread
}

/// Returns all sockets with this local or remote port.
fn tcp_sockets(port: u16) -> Vec<TcpSocket> {
    let port = format!(":{port:04X} ");
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(table).unwrap_or_default(); // A host without IPv6 has no tcp6.
        sockets.extend(table.lines().skip(1).filter(|line| line.contains(&port)).filter_map(parse));
    }
    sockets
}

/// Parses a line of the table, for example `   0: 0100007F:270F 00000000:0000 0A 00000000:00000000 …`:
/// entry number, local address, remote address, state, and the sizes of the send and receive queues.
fn parse(line: &str) -> Option<TcpSocket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = parse_address(fields.next()?)?;
    let remote = parse_address(fields.next()?)?;
    let state = match fields.next()? {
        "01" => TcpState::Established,
        "04" => TcpState::FinWait1,
        "05" => TcpState::FinWait2,
        "06" => TcpState::TimeWait,
        "08" => TcpState::CloseWait,
        "09" => TcpState::LastAck,
        "0A" => TcpState::Listen,
        "0B" => TcpState::Closing,
        _ => TcpState::Other,
    };
    let (unacknowledged, unread) = fields.next()?.split_once(':')?;
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    Some(TcpSocket { local, remote, state, unacknowledged: number(unacknowledged)?, unread: number(unread)? })
}

/// Parses an address, which is printed as one or four 32-bit words in the machine's byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |index: usize| u32::from_str_radix(ip.get(index * 8..index * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = if ip.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let mut bytes = [0; 16];
        for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
            part.copy_from_slice(&word(index)?);
        }
        Ipv6Addr::from(bytes).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}
