//! Socket options of the accepted streams.
//!
//! They are set on the listener. On Linux, accepted streams inherit them, which saves several system calls per connection.
//! Where they do not, [`Listener::accept`](crate::listen::listener::Listener::accept) sets them.

use std::io;
use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SetBool, SetUsize};
use rustix::io::Errno;
use socket2::Socket;

use crate::listen::is_errno;

/// The limit for unsent data in a send queue, above which the kernel accepts no more (TCP_NOTSENT_LOWAT, tcp(7)).
///
/// Without it the kernel buffers up to 4 MiB (net.ipv4.tcp_wmem) for a peer that does not read. It does not limit data that is
/// in flight, so the throughput to a peer that reads is not bounded by it. 128 KiB is room for two full read buffers of the
/// default size.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MAX_UNSENT_BYTES: u32 = 128 * 1024;

/// Sets the options that accepted TCP streams are to have, as far as this kind of socket has them. With `socket_buffer`,
/// SO_SNDBUF and SO_RCVBUF are that large, instead of growing and shrinking as the kernel sees fit (tcp(7), "autotuning").
pub(super) fn set_tcp_options(socket: &Socket, socket_buffer: Option<u32>) -> io::Result<()> {
    // Nagle's algorithm would delay a small echo until the previous one is acknowledged.
    if_supported(socket.set_tcp_nodelay(true))?;
    // Urgent data stays in line, as RFC 6093 recommends.
    if_supported(socket.set_out_of_band_inline(true))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if_supported(socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES))?;
    if let Some(bytes) = socket_buffer {
        // The kernel silently caps both, at net.core.wmem_max and net.core.rmem_max, and doubles them (socket(7)).
        if_supported(socket.set_send_buffer_size(bytes as usize))?;
        if_supported(socket.set_recv_buffer_size(bytes as usize))?;
    }
    Ok(())
}

/// Resets the options that the process which created a listener may have set on it, and that would break the echo. Accepted
/// streams inherit these as well.
pub(super) fn reset_tcp_options(socket: &Socket) -> io::Result<()> {
    // SO_LINGER: close(2) would block the loop or, with 0 seconds, reset the connection.
    if_supported(socket.set_linger(None))?;
    // SO_RCVLOWAT: no event would report fewer bytes than that.
    if_supported(setsockopt(socket, ReceiveLowWaterMark, &1).map_err(io::Error::from))?;
    // TCP_CORK: the kernel would hold back a small echo for 200 ms.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if_supported(socket.set_tcp_cork(false))?;
    Ok(())
}

/// Refuses descriptors that peers of a Unix socket would pass to us (SCM_RIGHTS in unix(7)): sending them fails with EPERM.
///
/// We never want any, and the kernel closes one that we do not take during our read(2). That can block the loop for as long as
/// the peer likes: for instance, it is a TCP socket with SO_LINGER and unsent data. Linux before 6.16 does not have the option.
/// There a peer can still do this to the others, so the path should be accessible to trusted users only.
#[cfg(target_os = "linux")]
pub(super) fn refuse_descriptors(socket: &impl AsFd) {
    let _ = setsockopt(socket, PassRights, &false);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn refuse_descriptors(_socket: &impl AsFd) {}

// Options that socket2 and rustix do not know. The macro writes the call of setsockopt(2), which is unsafe code; nix vouches for
// it, and for the type of the value.

#[derive(Clone, Copy)]
struct ReceiveLowWaterMark;
nix::setsockopt_impl!(ReceiveLowWaterMark, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, SetUsize);

#[cfg(target_os = "linux")]
#[derive(Clone, Copy)]
struct PassRights;
#[cfg(target_os = "linux")]
nix::setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, SetBool);

/// From asm/socket.h of Linux 6.16; the libc crate has it for SPARC only.
#[cfg(target_os = "linux")]
const SO_PASSRIGHTS: libc::c_int = if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) { 0x5c } else { 83 };

/// Turns the error of an option that this kind of socket does not have into success. MPTCP has no urgent data, for instance.
fn if_supported(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_errno(&error, Errno::NOPROTOOPT) || is_errno(&error, Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;
    use crate::listen::listener::Accepted;
    use crate::listen::socket::ListenOptions;
    use crate::listen::test_support::{OPTIONS, address, connect, soon};

    #[test]
    #[cfg(target_os = "linux")]
    fn accepted_tcp_stream_inherits_limits_of_kernel_memory() {
        let accept = |options: &ListenOptions| {
            let mut listener = address("127.0.0.1:0").bind(options).expect("listener").remove(0);
            let client = connect(listener.port().expect("TCP port"), "127.0.0.1").expect("connection");
            let Accepted::Tcp(stream, _) = soon(|| listener.accept()) else { panic!("expected a TCP stream") };
            (stream, client)
        };
        let (stream, _client) = accept(&OPTIONS);
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_notsent_lowat().expect("TCP_NOTSENT_LOWAT"), 128 * 1024);
        let default = socket.recv_buffer_size().expect("SO_RCVBUF");

        let (stream, _client) = accept(&ListenOptions { socket_buffer: Some(50_000), ..OPTIONS });
        let socket = SockRef::from(&stream);
        assert_eq!(socket.recv_buffer_size().expect("SO_RCVBUF"), 100_000, "the kernel doubles the value");
        assert_eq!(socket.send_buffer_size().expect("SO_SNDBUF"), 100_000, "the kernel doubles the value");
        assert_ne!(default, 100_000);
    }

    #[test]
    fn unsupported_option_is_not_an_error() {
        assert!(if_supported(Err(Errno::NOPROTOOPT.into())).is_ok());
        assert!(if_supported(Err(Errno::OPNOTSUPP.into())).is_ok());
        assert!(is_errno(&if_supported(Err(Errno::INVAL.into())).expect_err("another error"), Errno::INVAL));
    }
}
