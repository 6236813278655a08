//! What the kernel knows about the output of a TCP connection that it has accepted from us but not delivered yet.
//!
//! write(2) returns as soon as the kernel has a copy. Whether the peer's kernel has acknowledged it is a question to ours:
//! getsockopt(2) with TCP_INFO (tcp(7)). Linux only; elsewhere nothing is known, and callers behave as if everything were
//! acknowledged.

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{TcpInfo, tcp_info};
#[cfg(target_os = "linux")]
pub use linux::{TcpInfo, tcp_info};

/// The state of the output that the kernel has accepted from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendQueue {
    /// The peer's kernel has acknowledged everything, a FIN included.
    Empty,
    /// Something is still to be sent or to be acknowledged.
    Unacknowledged,
    /// The connection has ended: both FINs are acknowledged, or it was reset.
    Gone,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsFd;
    use std::sync::OnceLock;

    use nix::libc;
    use nix::sys::socket::getsockopt;
    use nix::sys::socket::sockopt::GetStruct;

    use super::SendQueue;

    /// The first 152 bytes of struct tcp_info (linux/tcp.h), which every kernel since 4.6 returns in this order.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct TcpInfo {
        state: u8,
        ca_state: u8,
        retransmits: u8,
        probes_to_options: [u8; 5],
        rto_to_rcv_mss: [u32; 4],
        unacked: u32,
        sacked_to_fackets: [u32; 4],
        last_data_sent: u32,
        last_ack_sent: u32,
        last_data_recv: u32,
        last_ack_recv: u32,
        pmtu_to_total_retrans: [u32; 11],
        pacing_rates: [u64; 2],
        bytes_acked: u64,
        bytes_received: u64,
        segs_out_and_in: [u32; 2],
        notsent_bytes: u32,
        min_rtt: u32,
    }

    const _: () = assert!(size_of::<TcpInfo>() == 152);

    /// The start of what SO_MEMINFO returns (linux/sock_diag.h). It is asked for only to see how recent the kernel is.
    type MemInfo = [u32; 6];

    // Socket options that nix does not define itself. Its macro contains the system call and checks the length of the answer.

    /// tcp(7), TCP_INFO.
    #[derive(Clone, Copy)]
    struct TcpInfoOption;
    nix::getsockopt_impl!(TcpInfoOption, libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfo, GetStruct<TcpInfo>);

    /// socket(7), SO_MEMINFO.
    #[derive(Clone, Copy)]
    struct MemInfoOption;
    nix::getsockopt_impl!(MemInfoOption, libc::SOL_SOCKET, libc::SO_MEMINFO, MemInfo, GetStruct<MemInfo>);

    // include/net/tcp_states.h
    const TCP_CLOSE: u8 = 7;
    const TCP_CLOSE_WAIT: u8 = 8;

    /// Returns what the kernel knows about a TCP connection, or `None` if it does not say (before Linux 4.12).
    pub fn tcp_info(socket: &impl AsFd) -> Option<TcpInfo> {
        // A kernel that has SO_MEMINFO (4.12) returns all of our TcpInfo. Shorter answers would not be handled gracefully.
        static HAS_MEMINFO: OnceLock<bool> = OnceLock::new();
        let is_recent = HAS_MEMINFO.get_or_init(|| getsockopt(&socket.as_fd(), MemInfoOption).is_ok());
        if *is_recent { getsockopt(&socket.as_fd(), TcpInfoOption).ok() } else { None }
    }

    impl TcpInfo {
        /// Returns the state of the send queue.
        pub fn send_queue(&self) -> SendQueue {
            match (self.state, self.unacked, self.notsent_bytes) {
                (TCP_CLOSE, ..) => SendQueue::Gone,
                (_, 0, 0) => SendQueue::Empty,
                _ => SendQueue::Unacknowledged,
            }
        }

        /// Returns whether the connection is over but for our FIN: the peer has sent its FIN, the `received` bytes before it are
        /// all that it ever sent, and its kernel has acknowledged everything that we wrote.
        pub fn is_complete(&self, received: u64) -> bool {
            let fin = 1; // A FIN takes one place in the sequence: RFC 9293, 3.4.
            self.state == TCP_CLOSE_WAIT
                && self.bytes_received == received.wrapping_add(fin)
                && self.send_queue() == SendQueue::Empty
        }

        /// Returns for how many milliseconds the send queue has not moved, or `None` if it is empty.
        ///
        /// A peer that reads opens its window, and the kernel sends more from the queue. While the kernel retransmits, sending
        /// does not mean that the peer reads; then the last acknowledgment counts. (Acknowledgments alone do not: a peer that does not read
        /// acknowledges window probes forever.)
        pub fn output_idle_ms(&self) -> Option<u32> {
            let idle = if self.retransmits > 0 { self.last_ack_recv } else { self.last_data_sent };
            (self.send_queue() == SendQueue::Unacknowledged).then_some(idle)
        }
    }

    #[cfg(test)]
    mod tests {
        use std::io::{Read, Write};
        use std::net::{Shutdown, TcpListener, TcpStream};
        use std::time::{Duration, Instant};

        use super::*;

        /// Returns our end of a TCP connection, and the peer's end with a receive buffer of some 2 KiB.
        fn connected() -> (TcpStream, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
            let peer = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
            peer.set_recv_buffer_size(2000).expect("SO_RCVBUF");
            peer.connect(&listener.local_addr().expect("address").into()).expect("connection");
            (listener.accept().expect("accepted stream").0, peer.into())
        }

        fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !condition() {
                assert!(Instant::now() < deadline, "timed out waiting for: {what}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        #[test]
        fn complete_only_after_fin_and_acknowledgment() {
            let (mut ours, mut peer) = connected();
            peer.write_all(b"hello").expect("send");
            ours.read_exact(&mut [0; 5]).expect("five bytes");
            ours.write_all(b"hello").expect("send");
            assert!(!tcp_info(&ours).expect("TCP_INFO").is_complete(5), "the FIN has not arrived yet");
            peer.read_exact(&mut [0; 5]).expect("five bytes");
            peer.shutdown(Shutdown::Write).expect("FIN");
            eventually("the FIN", || tcp_info(&ours).is_some_and(|info| info.is_complete(5)));
            assert!(!tcp_info(&ours).expect("TCP_INFO").is_complete(4), "a byte would be unread");
            assert_eq!(tcp_info(&ours).expect("TCP_INFO").send_queue(), SendQueue::Empty);
        }

        #[test]
        fn unread_tail_is_incomplete_and_ages() {
            let (mut ours, mut peer) = connected();
            ours.write_all(&[b'x'; 60_000]).expect("room in the send queue");
            peer.shutdown(Shutdown::Write).expect("FIN");
            eventually("an old tail", || tcp_info(&ours).and_then(|info| info.output_idle_ms()) > Some(50));
            let info = tcp_info(&ours).expect("TCP_INFO");
            assert!(!info.is_complete(0) && info.send_queue() == SendQueue::Unacknowledged);
            let mut bytes = [0; 6000];
            peer.read_exact(&mut bytes).expect("bytes");
            eventually("movement", || tcp_info(&ours).and_then(|info| info.output_idle_ms()) < Some(50));
            let mut rest = 60_000 - bytes.len();
            while rest > 0 {
                rest -= peer.read(&mut bytes).expect("bytes");
            }
            eventually("an empty send queue", || {
                tcp_info(&ours).is_some_and(|info| info.send_queue() == SendQueue::Empty)
            });
            assert_eq!(tcp_info(&ours).expect("TCP_INFO").output_idle_ms(), None);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    /// Nothing is known here.
    #[derive(Clone, Copy, Debug)]
    pub enum TcpInfo {}

    /// Returns `None`.
    pub fn tcp_info<T>(_socket: &T) -> Option<TcpInfo> {
        None
    }

    impl TcpInfo {
        /// Never called.
        pub fn send_queue(&self) -> super::SendQueue {
            match *self {}
        }

        /// Never called.
        pub fn is_complete(&self, _received: u64) -> bool {
            match *self {}
        }

        /// Never called.
        pub fn output_idle_ms(&self) -> Option<u32> {
            match *self {}
        }
    }
}
