//! Queries the kernel for the TCP state of a connection, even after we closed it.
//!
//! After close(2) a connection may be in FIN-WAIT-2 or TIME-WAIT, which TCP_INFO cannot report because it needs a socket. The
//! kernel's socket table can. But reading it as `/proc/net/tcp` and `tcp6` walks the whole hash table, which has room for
//! hundreds of thousands of sockets: 6 ms with 14 sockets in it, measured. So the kernel is asked for a single socket by its
//! two addresses, over netlink (sock_diag(7)), as ss(8) does for all of them: some 20 µs, however many sockets there are. The
//! files are read only if netlink is not available (a sandbox, a kernel without it), and then rarely: see `ReadBudget`.
//!
//! The table is that of our network namespace, and a query does not find a socket that is bound to a device. So the absence of a
//! socket proves nothing until the table has shown this very socket once, recognized by its inode: see [`SocketTable::lookup`].

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use std::{fmt, fs};

#[cfg(target_os = "linux")]
use crate::explain::sock_diag::SockDiag;

/// The states of RFC 9293, 3.3.2, that a server can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// The listening socket, which waits for a SYN.
    Listen,
    /// The SYN was received and SYN+ACK was sent.
    SynReceived,
    /// Open in both directions.
    Established,
    /// Our FIN was sent and is not acknowledged.
    FinWait1,
    /// Our FIN is acknowledged; the peer's has not arrived.
    FinWait2,
    /// The peer's FIN has arrived; ours was not sent.
    CloseWait,
    /// Both FINs were sent at the same time, and ours is not acknowledged.
    Closing,
    /// Both FINs were sent, the peer's first; ours is not acknowledged.
    LastAck,
    /// Both sides have closed, ours first. The address pair is kept for a while, so that a late segment does not reach another
    /// connection.
    TimeWait,
    /// The connection does not exist (any more).
    Closed,
}

impl TcpState {
    /// Converts the kernel's number (include/net/tcp_states.h), which `/proc/net/tcp` shows in hexadecimal.
    pub(super) fn from_number(number: u8) -> Option<TcpState> {
        Some(match number {
            1 => TcpState::Established,
            3 | 12 => TcpState::SynReceived, // 12: not accepted yet, and without a socket
            4 => TcpState::FinWait1,
            5 => TcpState::FinWait2,
            6 => TcpState::TimeWait,
            // For a connection that no longer exists, the kernel finds the listener that would accept it again.
            7 | 10 => TcpState::Closed,
            8 => TcpState::CloseWait,
            9 => TcpState::LastAck,
            11 => TcpState::Closing,
            _ => return None,
        })
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TcpState::Listen => "LISTEN",
            TcpState::SynReceived => "SYN-RECEIVED",
            TcpState::Established => "ESTABLISHED",
            TcpState::FinWait1 => "FIN-WAIT-1",
            TcpState::FinWait2 => "FIN-WAIT-2",
            TcpState::CloseWait => "CLOSE-WAIT",
            TcpState::Closing => "CLOSING",
            TcpState::LastAck => "LAST-ACK",
            TcpState::TimeWait => "TIME-WAIT",
            TcpState::Closed => "CLOSED",
        })
    }
}

/// The two addresses of a connection, as the socket has them: IPv4 on a dual-stack socket is `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPair {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
}

/// A socket to look up, and whether the table is known to show it.
#[derive(Clone, Copy, Debug)]
pub struct SocketId {
    /// Its addresses.
    pub pair: AddressPair,
    /// Its inode, as in fstat(2). After close(2), the table shows 0 instead.
    inode: u64,
    /// Whether the table has shown it. If so, it is the table of the right namespace.
    is_verified: bool,
    /// The kernel's unique number of the socket, if the table has shown it over netlink.
    pub(super) cookie: Option<[u8; 8]>,
}

impl SocketId {
    /// Identifies an open socket.
    pub fn new(pair: AddressPair, socket: impl AsFd) -> SocketId {
        // fstat(2) cannot fail on an open socket. If it did, the socket would not be recognized.
        let inode = rustix::fs::fstat(socket).map_or(u64::MAX, |stat| stat.st_ino);
        SocketId { pair, inode, is_verified: false, cookie: None }
    }

    /// Returns whether the table is known to show this socket.
    pub fn is_verified(&self) -> bool {
        self.is_verified
    }

    /// Returns what it means that the table does, or does not, contain an entry with its addresses.
    fn recognize(&mut self, entry: Option<Entry>) -> Lookup {
        match entry {
            Some(entry) if entry.inode == self.inode || self.is_verified && entry.inode == 0 => {
                self.is_verified = true;
                self.cookie = entry.cookie.or(self.cookie);
                entry.state.map_or(Lookup::Skipped, Lookup::State)
            }
            // The addresses belong to another socket, for example the next connection from the same port.
            _ if self.is_verified => Lookup::Gone,
            _ => Lookup::Unknown,
        }
    }
}

/// The result of looking up a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The socket is in this state.
    State(TcpState),
    /// The table has shown the socket, and no longer contains it.
    Gone,
    /// The table has never shown the socket. It is in another network namespace, or bound to a device.
    Unknown,
    /// The table was not queried, because that would be too expensive now.
    Skipped,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// `None`: a number that we do not know.
    pub(super) state: Option<TcpState>,
    pub(super) inode: u64,
    pub(super) cookie: Option<[u8; 8]>,
}

/// Handle for querying kernel socket state.
#[derive(Debug)]
pub struct SocketTable {
    #[cfg(target_os = "linux")]
    netlink: Option<SockDiag>,
    budget: ReadBudget,
    /// Whether a file was read in this iteration of the loop.
    has_read: bool,
    max_table_len: u64,
}

impl SocketTable {
    /// Creates a handle, over netlink if that is available.
    pub fn new() -> SocketTable {
        SocketTable {
            #[cfg(target_os = "linux")]
            netlink: SockDiag::open().ok(),
            budget: ReadBudget::new(Instant::now()),
            has_read: false,
            max_table_len: MAX_TABLE_LEN,
        }
    }

    /// Looks up the state of a socket, also after close(2).
    pub fn lookup(&mut self, socket: &mut SocketId) -> Lookup {
        #[cfg(target_os = "linux")]
        if let Some(netlink) = &mut self.netlink {
            match netlink.entry(socket) {
                Ok(entry) => return socket.recognize(entry),
                Err(_) => self.netlink = None, // Use the files from now on.
            }
        }
        if self.has_read {
            return Lookup::Skipped;
        }
        self.has_read = true;
        let path = if socket.pair.local.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        let max_len = self.max_table_len;
        match self.budget.spend(|| Some(entry_in(&read_bounded(path, max_len)?, &socket.pair))) {
            Some(Some(entry)) => socket.recognize(entry),
            _ => Lookup::Skipped,
        }
    }

    /// Returns how many segments the kernel has answered with RST so far in this network namespace: all RSTs that it sent
    /// (`OutRsts`), minus those with which a program closed with bytes unread (`TCPAbortOnClose`).
    pub fn rst_count(&mut self) -> Option<i64> {
        self.budget.spend(|| {
            let sent = counter_in(&fs::read_to_string("/proc/net/snmp").ok()?, "Tcp:", "OutRsts")?;
            let closed = counter_in(&fs::read_to_string("/proc/net/netstat").ok()?, "TcpExt:", "TCPAbortOnClose")?;
            Some(sent - closed)
        })?
    }

    /// Marks the end of an iteration of the loop: a file may be read again.
    pub fn end_iteration(&mut self) {
        self.has_read = false;
    }
}

impl Default for SocketTable {
    fn default() -> SocketTable {
        SocketTable::new()
    }
}

/// The time that may be spent on reading files: 1 % of the elapsed time. Unspent time accumulates up to a limit.
#[derive(Debug)]
struct ReadBudget {
    left: Duration,
    refilled_at: Instant,
}

impl ReadBudget {
    const DIVISOR: u32 = 100;
    const MAX: Duration = Duration::from_millis(20);

    fn new(now: Instant) -> ReadBudget {
        ReadBudget { left: ReadBudget::MAX, refilled_at: now }
    }

    /// Runs `work` if any time is left, and subtracts what it cost.
    fn spend<T>(&mut self, work: impl FnOnce() -> T) -> Option<T> {
        let start = Instant::now();
        let earned = start.saturating_duration_since(self.refilled_at) / ReadBudget::DIVISOR;
        self.left = (self.left + earned).min(ReadBudget::MAX);
        self.refilled_at = start;
        if self.left.is_zero() {
            return None;
        }
        let outcome = work();
        self.left = self.left.saturating_sub(start.elapsed());
        Some(outcome)
    }
}

/// The longest table that is read, in bytes: about 1,700 sockets, which cost a millisecond or two in addition to the walk.
const MAX_TABLE_LEN: u64 = 256 * 1024;

/// Reads a table whole. Returns `None` if it is longer than `max_len`: a connection missing from its beginning may be further on.
fn read_bounded(path: &str, max_len: u64) -> Option<String> {
    let mut table = String::new();
    let length = File::open(path).and_then(|file| file.take(max_len).read_to_string(&mut table)).ok()?;
    ((length as u64) < max_len).then_some(table)
}

/// Finds a connection in the text of `/proc/net/tcp` or `tcp6` (proc_pid_net(5)).
fn entry_in(table: &str, pair: &AddressPair) -> Option<Entry> {
    let (local, remote) = (to_proc_format(pair.local), to_proc_format(pair.remote));
    for row in table.lines().skip(1) {
        let mut fields = row.split_ascii_whitespace().skip(1);
        if fields.next() == Some(&local) && fields.next() == Some(&remote) {
            let state = TcpState::from_number(u8::from_str_radix(fields.next()?, 16).ok()?);
            // Between state and inode: queues, timer, retransmissions, user, timeouts.
            return Some(Entry { state, inode: fields.nth(5)?.parse().ok()?, cookie: None });
        }
    }
    None
}

/// Formats an address as those files do: as 32-bit words in memory order, then the port.
fn to_proc_format(address: SocketAddr) -> String {
    let words = |octets: &[u8]| -> String {
        octets
            .chunks_exact(4)
            .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().expect("four"))))
            .collect()
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{ip}:{:04X}", address.port())
}

/// Finds a counter in the text of `/proc/net/snmp` or `netstat`, which have a line of names and a line of values per group.
fn counter_in(table: &str, group: &str, name: &str) -> Option<i64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let index = names.split_ascii_whitespace().position(|found| found == name)?;
    values.split_ascii_whitespace().nth(index)?.parse().ok()
}

/// Returns how long the kernel keeps a connection in FIN-WAIT-2 after close(2): tcp_fin_timeout, tcp(7).
pub fn fin_timeout() -> Duration {
    let seconds =
        fs::read_to_string("/proc/sys/net/ipv4/tcp_fin_timeout").ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// Returns a listener on this address and a connection to it: the server's end, the client's end, and the server's identity.
    fn connected(listen: &str) -> (TcpListener, TcpStream, TcpStream, SocketId) {
        let listener = TcpListener::bind(listen).expect("listener");
        let port = listener.local_addr().expect("address").port();
        let host = if listen.contains("::1") { "::1" } else { "127.0.0.1" };
        let client = TcpStream::connect((host, port)).expect("connection");
        let (server, remote) = listener.accept().expect("connection");
        let socket = SocketId::new(AddressPair { local: server.local_addr().expect("address"), remote }, &server);
        (listener, server, client, socket)
    }

    fn eventually(mut lookup: impl FnMut() -> Lookup, expected: Lookup) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while lookup() != expected {
            assert!(Instant::now() < deadline, "found {:?}, expected {expected:?}", lookup());
            std::thread::yield_now();
        }
    }

    /// Looks up a socket, however long the files of /proc are.
    fn lookup(table: &mut SocketTable, socket: &mut SocketId) -> Lookup {
        table.end_iteration();
        table.budget = ReadBudget { left: Duration::from_secs(3600), refilled_at: Instant::now() };
        table.lookup(socket)
    }

    /// Returns the two ways to query the table.
    fn tables() -> [SocketTable; 2] {
        [SocketTable::new(), SocketTable { netlink: None, max_table_len: u64::MAX, ..SocketTable::new() }]
    }

    #[test]
    fn connection_is_tracked_after_close_over_netlink_and_proc() {
        for (listen, mut table) in
            ["127.0.0.1:0", "[::1]:0", "[::]:0"].into_iter().flat_map(|l| tables().map(|t| (l, t)))
        {
            let (_listener, server, client, mut socket) = connected(listen);
            let mut never_shown = socket;
            let mut state = || lookup(&mut table, &mut socket);
            assert_eq!(state(), Lookup::State(TcpState::Established), "{listen}");
            server.shutdown(Shutdown::Write).expect("shutdown");
            eventually(&mut state, Lookup::State(TcpState::FinWait2));
            drop(server);
            assert_eq!(state(), Lookup::State(TcpState::FinWait2), "{listen}: after close(2)");
            assert_eq!(lookup(&mut table, &mut never_shown), Lookup::Unknown, "it has no inode any more");
            let mut state = || lookup(&mut table, &mut socket);
            drop(client);
            eventually(&mut state, Lookup::State(TcpState::TimeWait));

            let (_listener, server, client, mut socket) = connected(listen);
            let mut state = || lookup(&mut table, &mut socket);
            assert_eq!(state(), Lookup::State(TcpState::Established), "{listen}");
            client.shutdown(Shutdown::Write).expect("shutdown");
            eventually(&mut state, Lookup::State(TcpState::CloseWait));
            drop(server);
            eventually(&mut state, Lookup::Gone);
        }
    }

    #[test]
    fn absent_socket_is_unknown_until_it_was_shown_once() {
        for mut table in tables() {
            let (_listener, server, client, mut socket) = connected("127.0.0.1:0");
            let mut never_shown = socket;
            // Another socket with the same addresses, as there may be in our namespace if ours is in another one.
            let mut other = SocketId { inode: socket.inode + 1, ..socket };
            assert_eq!(lookup(&mut table, &mut other), Lookup::Unknown);
            assert_eq!(lookup(&mut table, &mut socket), Lookup::State(TcpState::Established));
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            drop(client); // RST
            eventually(|| lookup(&mut table, &mut socket), Lookup::Gone);
            assert_eq!(lookup(&mut table, &mut never_shown), Lookup::Unknown);
            drop(server);
        }
    }

    #[test]
    fn reused_addresses_are_not_the_same_socket() {
        for mut table in tables() {
            let (_listener, _server, _client, mut socket) = connected("127.0.0.1:0");
            assert_eq!(lookup(&mut table, &mut socket), Lookup::State(TcpState::Established));
            let mut successor = SocketId { inode: socket.inode + 1, ..socket };
            if let Some(cookie) = &mut successor.cookie {
                cookie[0] ^= 1;
            }
            assert_eq!(lookup(&mut table, &mut successor), Lookup::Gone, "the entry is another socket's");
        }
    }

    #[test]
    fn proc_files_are_read_once_per_iteration_within_budget() {
        let [_, mut table] = tables();
        let (_listener, _server, _client, mut socket) = connected("127.0.0.1:0");
        assert_eq!(lookup(&mut table, &mut socket), Lookup::State(TcpState::Established));
        assert_eq!(table.lookup(&mut socket), Lookup::Skipped, "a second read in the same iteration");
        table.end_iteration();
        table.budget.left = Duration::ZERO;
        table.budget.refilled_at = Instant::now() + Duration::from_secs(3600);
        assert_eq!(table.lookup(&mut socket), Lookup::Skipped, "the budget is used up");
        table.end_iteration();
        table.budget = ReadBudget::new(Instant::now());
        table.max_table_len = 100;
        assert_eq!(table.lookup(&mut socket), Lookup::Skipped, "the table is too long");
    }

    #[test]
    fn counter_is_found_by_name() {
        let table = "Ip: A OutRsts\nIp: 1 2\nTcp: A OutRsts B\nTcp: 7 8 9\nUdp: A\nUdp: 1\n";
        assert_eq!(counter_in(table, "Tcp:", "OutRsts"), Some(8));
        assert_eq!(counter_in(table, "Tcp:", "C"), None);
        assert_eq!(counter_in(table, "Icmp:", "A"), None);
        assert!(SocketTable::new().rst_count().is_some());
    }
}
