//! A peer of the daemon, over TCP or a Unix socket, that gives up after [`TIMEOUT`].

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{TIMEOUT, TcpSocket, assert_same, tcp_socket};

/// Where the daemon listens, as its line on stdout says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// The endpoint of `--metrics`.
    Http(SocketAddr),
}

impl Address {
    /// Reads the rest of a `listening on …` line.
    pub fn parse(url: &str) -> Option<Address> {
        let (scheme, rest) = url.split_once("://")?;
        match scheme {
            "tcp" => rest.parse().ok().map(Address::Tcp),
            "http" => rest.parse().ok().map(Address::Http),
            "unix" => Some(Address::Unix(rest.into())),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Http(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Address {
        Address::Unix(path.into())
    }
}

/// One connection to the daemon. Dropped, it is closed: with FIN, or with RST if bytes are left unread.
pub struct Client {
    pub socket: Socket,
    /// Both ends of a TCP connection, asked for at once: a connection that has ended has none any more.
    ends: Option<(SocketAddr, SocketAddr)>,
}

impl Client {
    #[track_caller]
    pub fn connect(address: &Address) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub fn try_connect(address: &Address) -> io::Result<Client> {
        Client::connect_with(address, |_| Ok(()))
    }

    /// Connects after `prepare` has set what must be set before: buffer sizes, a local address.
    pub fn connect_with(address: &Address, prepare: impl Fn(&Socket) -> io::Result<()>) -> io::Result<Client> {
        let socket = match address {
            Address::Tcp(address) | Address::Http(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                prepare(&socket)?;
                socket.connect_timeout(&SockAddr::from(*address), TIMEOUT)?;
                socket.set_tcp_nodelay(true)?;
                socket
            }
            Address::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                prepare(&socket)?;
                socket.set_write_timeout(Some(TIMEOUT))?; // connect(2) on a Unix socket waits this long, too.
                socket.connect(&SockAddr::unix(path)?)?;
                socket
            }
        };
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let ends = socket.local_addr()?.as_socket().zip(socket.peer_addr()?.as_socket());
        Ok(Client { socket, ends })
    }

    /// Connects with kernel buffers so small that the peer soon stalls when we do not read.
    #[track_caller]
    pub fn connect_with_small_buffers(address: &Address) -> Client {
        let narrow = |socket: &Socket| {
            socket.set_recv_buffer_size(8192)?;
            socket.set_send_buffer_size(8192)
        };
        Client::connect_with(address, narrow).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Our own address, as the daemon's log shows it.
    #[track_caller]
    pub fn local(&self) -> SocketAddr {
        self.ends.expect("a TCP connection").0
    }

    #[track_caller]
    pub fn remote(&self) -> SocketAddr {
        self.ends.expect("a TCP connection").1
    }

    pub fn is_tcp(&self) -> bool {
        self.ends.is_some()
    }

    /// What the kernel says about our end.
    pub fn local_socket(&self) -> Option<TcpSocket> {
        tcp_socket(self.local(), self.remote())
    }

    /// What the kernel says about the daemon's end.
    pub fn remote_socket(&self) -> Option<TcpSocket> {
        tcp_socket(self.remote(), self.local())
    }

    #[track_caller]
    pub fn send(&self, bytes: &[u8]) {
        (&self.socket).write_all(bytes).unwrap_or_else(|error| panic!("cannot send {} bytes: {error}", bytes.len()));
    }

    /// Sends with the last byte marked as urgent (MSG_OOB). Unix sockets know that since Linux 5.15; where they do
    /// not, the bytes go as they are.
    #[track_caller]
    pub fn send_urgent(&self, bytes: &[u8]) {
        match self.socket.send_out_of_band(bytes) {
            Ok(sent) => assert_eq!(sent, bytes.len()),
            Err(error) if !self.is_tcp() && error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                self.send(bytes)
            }
            Err(error) => panic!("cannot send urgent data: {error}"),
        }
    }

    /// Sends as much as the kernel takes at once, and says how much that was.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::net::send(&self.socket, bytes, SendFlags::DONTWAIT) {
            Ok(taken) => Ok(taken),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends from a repeating `block` until the daemon has taken nothing for `quiet`: it has stopped reading, and
    /// every buffer between is full. Returns how many bytes went out.
    #[track_caller]
    pub fn send_until_stalled(&self, block: &[u8], quiet: Duration, most: usize) -> usize {
        let (mut sent, mut last) = (0, Instant::now());
        while last.elapsed() < quiet {
            assert!(sent < most, "{sent} bytes sent, and the daemon still takes more although nothing is read");
            let offset = sent % block.len();
            match self.try_send(&block[offset..]).expect("an open connection") {
                0 => drop(self.wait_for(PollFlags::OUT, Duration::from_millis(10))),
                taken => (sent, last) = (sent + taken, Instant::now()),
            }
        }
        sent
    }

    /// The next `length` bytes, or why they do not come.
    pub fn read_exactly(&self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        (&self.socket).read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The next bytes are exactly these.
    #[track_caller]
    pub fn expect(&self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        let mut length = 0;
        while length < got.len() {
            match (&self.socket).read(&mut got[length..]) {
                Ok(0) => panic!("FIN after {length} of {} bytes", expected.len()),
                Ok(read) => length += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("after {length} of {} bytes: {error}", expected.len()),
            }
        }
        assert_same(&got, expected);
    }

    /// Sends, and expects the same back. For what fits into the kernel's buffers; else [`Client::exchange`].
    #[track_caller]
    pub fn echo(&self, bytes: &[u8]) {
        self.send(bytes);
        self.expect(bytes);
    }

    /// Sends and reads at the same time, so that any length comes through a bounded echo.
    #[track_caller]
    pub fn exchange(&self, bytes: &[u8]) {
        thread::scope(|scope| {
            scope.spawn(|| self.send(bytes));
            self.expect(bytes);
        });
    }

    /// Sends our FIN.
    #[track_caller]
    pub fn send_fin(&self) {
        self.socket.shutdown(Shutdown::Write).expect("an open connection");
    }

    /// The daemon's FIN is next, with no byte before it and no reset.
    #[track_caller]
    pub fn expect_fin(&self) {
        let rest = self.read_to_end().unwrap_or_else(|error| panic!("FIN expected: {error}"));
        assert!(rest.is_empty(), "FIN expected, {} bytes came before it", rest.len());
    }

    /// The connection is over, by FIN or by reset, and nothing more comes. Says which.
    #[track_caller]
    pub fn expect_closed(&self) -> io::Result<()> {
        let end = self.read_to_end().map(|rest| assert!(rest.is_empty(), "{} bytes instead of the end", rest.len()));
        if let Err(error) = &end {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "FIN or a reset expected: {error}");
        }
        end
    }

    /// How many bytes have come that we have not read.
    #[track_caller]
    pub fn unread(&self) -> usize {
        rustix::io::ioctl_fionread(&self.socket).expect("FIONREAD") as usize
    }

    /// Nothing has come so far: no byte, no FIN, no reset.
    #[track_caller]
    pub fn expect_nothing_yet(&self) {
        match rustix::net::recv(&self.socket, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Err(Errno::AGAIN) => {}
            other => panic!("nothing expected yet, but there is: {other:?}"),
        }
    }

    /// Everything up to the daemon's FIN; an error if a reset comes first.
    pub fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&self.socket).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything up to the end, whatever that is.
    pub fn read_until_closed(&self) -> (Vec<u8>, io::Result<()>) {
        let mut bytes = Vec::new();
        let end = (&self.socket).read_to_end(&mut bytes).map(drop);
        (bytes, end)
    }

    /// Waits for readiness, and says whether it came in time.
    pub fn wait_for(&self, flags: PollFlags, time: Duration) -> bool {
        let timeout = Timespec::try_from(time).expect("a short time");
        matches!(poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)), Ok(ready) if ready > 0)
    }

    /// Ends the connection with RST: close(2) with SO_LINGER of 0.
    #[track_caller]
    pub fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
}
