//! Queries for single sockets over netlink: sock_diag(7). The kernel answers during send(2), so nothing here waits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use crate::explain::socket_table::{AddressPair, Entry, SocketId, TcpState};

/// struct nlmsghdr.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// Offsets in struct inet_diag_msg.
const COOKIE: usize = 44;
const INODE: usize = 68;

/// A netlink socket for queries.
#[derive(Debug)]
pub(super) struct SockDiag {
    socket: OwnedFd,
    sequence: u32,
}

impl SockDiag {
    pub(super) fn open() -> io::Result<SockDiag> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
        Ok(SockDiag { socket, sequence: 0 })
    }

    /// Returns the entry of a socket, `None` if there is none.
    pub(super) fn entry(&mut self, socket: &SocketId) -> io::Result<Option<Entry>> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.socket, &request(&socket.pair, socket.cookie, self.sequence), SendFlags::empty())?;
        let mut answer = [0; 512];
        loop {
            let (length, _) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
            let answer = &answer[..length.min(512)];
            if answer.len() < HEADER + 4 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let half = |at: usize| u16::from_ne_bytes([answer[at], answer[at + 1]]);
            let word = |at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().expect("four"));
            if word(8) != self.sequence {
                continue; // The response to an earlier request.
            }
            // A socket with another cookie is not ours.
            let is_absent = |error| [Errno::NOENT, Errno::STALE].iter().any(|errno| error == -errno.raw_os_error());
            return match half(4) {
                SOCK_DIAG_BY_FAMILY if answer.len() >= HEADER + INODE + 4 => Ok(Some(Entry {
                    state: TcpState::from_number(answer[HEADER + 1]),
                    inode: word(HEADER + INODE).into(),
                    cookie: answer[HEADER + COOKIE..HEADER + COOKIE + 8].try_into().ok(),
                })),
                NLMSG_ERROR if is_absent(word(HEADER) as i32) => Ok(None),
                _ => Err(io::ErrorKind::Unsupported.into()),
            };
        }
    }
}

/// Encodes struct nlmsghdr and struct inet_diag_req_v2. Ports and addresses are in network byte order.
fn request(pair: &AddressPair, cookie: Option<[u8; 8]>, number: u32) -> Vec<u8> {
    const LENGTH: u32 = 72;
    let mut request = Vec::with_capacity(LENGTH as usize);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend(number.to_ne_bytes());
    request.extend([0; 4]); // Port 0 is the kernel.
    let family = if pair.local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    request.extend([family.as_raw() as u8, IPPROTO_TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // In any state.
    request.extend(pair.local.port().to_be_bytes());
    request.extend(pair.remote.port().to_be_bytes());
    for end in [pair.local, pair.remote] {
        match end.ip() {
            IpAddr::V4(ip) => request.extend(ip.octets().into_iter().chain([0; 12])),
            IpAddr::V6(ip) => request.extend(ip.octets()),
        }
    }
    // A link-local address is ambiguous without its interface.
    let interface = if let SocketAddr::V6(address) = pair.local { address.scope_id() } else { 0 };
    request.extend(interface.to_ne_bytes());
    request.extend(cookie.unwrap_or([0xff; 8])); // All ones: with any cookie.
    debug_assert_eq!(request.len(), LENGTH as usize);
    request
}
