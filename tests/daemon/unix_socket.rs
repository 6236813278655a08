//! `--listen unix:PATH`: creation and removal of the socket file. `connection.rs` tests the echo over Unix sockets.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::libc;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::GetBool;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::{Address, Client, Daemon, Directory, Signal, TIMEOUT, skip, unix, wait_until};

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// Asserts that the daemon exits with status 1 and one line that names the path and contains `reason`.
#[track_caller]
fn assert_refused(path: &Path, reason: &str) {
    let finished = Daemon::with(&["--listen", &unix(path)]).run();
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    let expected = format!("echod: cannot listen on {}: ", unix(path));
    assert!(finished.stderr.starts_with(&expected), "{:?} does not begin with {expected:?}", finished.stderr);
    assert!(finished.stderr.contains(reason), "{:?} does not contain {reason:?}", finished.stderr);
    assert_eq!((finished.stderr.lines().count(), finished.stdout.as_str()), (1, ""));
}

#[test]
fn socket_file_exists_while_running_and_is_removed() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let mut daemon = Daemon::start_unix(&path, &[]);
    assert_eq!(daemon.stdout(), format!("listening on unix://{}\n", path.display()));
    assert!(is_socket(&path));
    daemon.connect().echo(b"hello");
    daemon.terminate();
    assert!(!path.exists(), "the socket file is left behind");
}

#[test]
fn socket_file_is_removed_after_a_forced_exit() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let mut daemon = Daemon::start_unix(&path, &["--drain-timeout", "1h"]);
    let client = daemon.connect();
    client.echo(b"hello");
    daemon.signal(Signal::TERM);
    client.expect_fin();
    daemon.signal(Signal::TERM);
    daemon.expect_success();
    assert!(!path.exists(), "the socket file is left behind after a second signal");

    let mut daemon = Daemon::start_unix(&path, &["--drain-timeout", "10ms"]);
    let client = daemon.connect();
    client.echo(b"hello");
    daemon.terminate();
    assert!(!path.exists(), "the socket file is left behind after the drain timeout");
}

#[test]
fn socket_file_is_removed_when_startup_fails() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let finished = Daemon::with(&["-l", &unix(&path), "-l", "192.0.2.1:0"]).run();
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(!path.exists(), "the socket file is left behind");
}

#[test]
fn stale_socket_is_replaced() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    drop(UnixListener::bind(&path).unwrap()); // std does not remove the file. Connecting fails with ECONNREFUSED.
    Daemon::start_unix(&path, &[]).connect().echo(b"replaced");

    // The same for a file that the daemon left behind when it was killed.
    let mut daemon = Daemon::start_unix(&path, &[]);
    daemon.signal(Signal::KILL);
    daemon.wait_exit(crate::support::TIMEOUT);
    assert!(is_socket(&path));
    Daemon::start_unix(&path, &[]).connect().echo(b"replaced");
}

#[test]
fn live_socket_is_an_error_and_left_alone() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let first = Daemon::start_unix(&path, &[]);
    assert_refused(&path, "Address already in use (os error 98)");
    first.connect().echo(b"undisturbed");
}

#[test]
fn live_socket_with_full_backlog_is_not_stale() {
    // Connecting to it fails with EAGAIN, or blocks. Only ECONNREFUSED means stale.
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(1).unwrap();
    let mut queued = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        match client.connect(&SockAddr::unix(&path).unwrap()) {
            Ok(()) => queued.push(client),
            Err(error) => break assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
        }
    }
    assert_refused(&path, "Address already in use (os error 98)");
    assert!(is_socket(&path));
    assert!(listener.accept().is_ok(), "the pending connections are still there");
}

#[test]
fn directory_is_an_error_and_left_alone() {
    let directory = Directory::new();
    let path = directory.join("a-directory");
    fs::create_dir(&path).unwrap();
    assert_refused(&path, "(os error 98)");
    assert!(path.is_dir());
}

#[test]
fn non_socket_file_is_an_error_and_left_alone() {
    let directory = Directory::new();
    let path = directory.join("precious");
    fs::write(&path, "precious").unwrap();
    assert_refused(&path, "(os error 98)");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let link = directory.join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_refused(&link, "(os error 98)");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn missing_directory_is_an_error() {
    let directory = Directory::new();
    assert_refused(&directory.join("nowhere/echo.sock"), "No such file or directory (os error 2)");
}

#[test]
fn longest_path_works_and_longer_is_rejected() {
    // unix(7): 108 bytes with the terminating NUL. `command_line.rs` tests the message for a longer path.
    let directory = Directory::new();
    let room = 107 - directory.path().as_os_str().len() - 1;
    let longest = directory.join(&"x".repeat(room));
    Daemon::start_unix(&longest, &[]).connect().echo(b"hello");

    let too_long = directory.join(&"x".repeat(room + 1));
    let finished = Daemon::with(&["--listen", &unix(&too_long)]).run();
    assert_eq!((finished.code, finished.stderr.lines().count()), (2, 1), "{}", finished.stderr);

    let finished = Daemon::with(&["--listen", &format!("unix:@{}", "x".repeat(108))]).run();
    assert_eq!((finished.code, finished.stderr.lines().count()), (2, 1), "{}", finished.stderr);
}

#[test]
fn abstract_socket_is_served_without_a_file() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    let directory = Directory::new();
    let name = format!("echod-test-{}", std::process::id());
    let script = format!(r#"cd "{}" && exec "$@""#, directory.path().display());
    let mut daemon = Daemon::with(&["--listen", &format!("unix:@{name}")]).shell(&script).start();
    assert_eq!(daemon.stdout(), format!("listening on unix://@{name}\n"));
    let mut client = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut echo = String::new();
    client.read_to_string(&mut echo).unwrap();
    assert_eq!(echo, "hello");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "there should not be a file");

    let second = Daemon::with(&["--listen", &format!("unix:@{name}")]).run();
    let expected = format!("echod: cannot listen on unix:@{name}: Address already in use (os error 98)\n");
    assert_eq!((second.code, second.stderr), (1, expected));
    daemon.terminate();
    Daemon::with(&["--listen", &format!("unix:@{name}")]).start();
}

#[test]
fn socket_file_of_another_daemon_is_not_removed() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let mut first = Daemon::start_unix(&path, &[]);
    fs::remove_file(&path).unwrap();
    let second = Daemon::start_unix(&path, &[]);
    let inode = fs::metadata(&path).unwrap().ino();
    first.terminate();
    assert_eq!(
        fs::metadata(&path).map(|file| file.ino()).ok(),
        Some(inode),
        "the file of the other daemon should be left alone"
    );
    second.connect().echo(b"still served");
}

/// Sends `bytes` together with a descriptor. Returns the other end of the passed socket, which reads end of stream once
/// every copy of the descriptor is closed.
fn send_descriptor(socket: &Socket, bytes: &[u8]) -> rustix::io::Result<UnixStream> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let (passed, other) = UnixStream::pair().unwrap();
    let descriptors = [passed.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(socket, &[std::io::IoSlice::new(bytes)], &mut ancillary, SendFlags::empty())?;
    assert_eq!(sent, bytes.len());
    other.set_read_timeout(Some(TIMEOUT)).unwrap();
    Ok(other)
}

/// Returns a daemon to which `listener` is passed as by a service manager.
fn activated(listener: UnixListener) -> Daemon {
    let script = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null"#;
    Daemon::with(&[]).without_listen().shell(script).stdin(OwnedFd::from(listener)).start()
}

#[test]
fn data_after_passed_descriptors_is_not_missed() {
    // A read stops at SCM_RIGHTS (unix(7)) with more data behind it, and no new event reports that data. The descriptor is
    // sent before the daemon starts, because from then on it refuses descriptors if the kernel supports that.
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&Address::Unix(path));
    client.send(b"before");
    let mut other = send_descriptor(&client.socket, b"with").unwrap();
    client.send(b"after");
    let _daemon = activated(listener);
    // Checked before we read, because that makes room, and the event for the room would cause the daemon to read again.
    wait_until("all of it is echoed", || client.unread() == b"beforewithafter".len());
    client.expect(b"beforewithafter");
    assert_eq!(other.read(&mut [0]).unwrap(), 0, "the daemon should not keep the descriptor");
    client.send_fin();
    client.expect_fin();
}

/// SO_PASSRIGHTS of Linux 6.16, which no library knows.
#[derive(Clone, Copy)]
struct PassRights;
const SO_PASSRIGHTS: libc::c_int = 83;
nix::getsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, GetBool);

#[test]
fn passing_a_descriptor_fails() {
    // The daemon would close it in read(2), which can block: a TCP socket with SO_LINGER and unsent data, for instance.
    let (socket, _) = UnixStream::pair().unwrap();
    if let Err(error) = getsockopt(&socket, PassRights) {
        return skip(&format!("this kernel has no SO_PASSRIGHTS: {error}"));
    }
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let early = Client::connect(&Address::Unix(path));
    let activated = activated(listener);
    early.echo(b"accepted");
    let name = format!("unix:@echod-test-rights-{}", std::process::id());
    let abstract_daemon = Daemon::start(&["--listen", &name]);
    let abstract_client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    abstract_client.connect(&SockAddr::unix(name.replace("unix:@", "\0")).unwrap()).unwrap();
    let daemon = Daemon::start_unix(&directory.join("other.sock"), &[]);
    for (client, kind) in [
        (&early.socket, "a pending connection of a passed listener"),
        (&activated.connect().socket, "a passed listener"),
        (&abstract_client, "an abstract socket"),
        (&daemon.connect().socket, "a path"),
    ] {
        let error = send_descriptor(client, b"with").expect_err(kind);
        assert_eq!(error, rustix::io::Errno::PERM, "{kind}");
    }
    drop(abstract_daemon);
}

#[test]
fn restart_during_drain_takes_over_the_path() {
    // The listener closes first. From then on the file is stale, and the new daemon replaces it with its own.
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let mut old = Daemon::start_unix(&path, &["--drain-timeout", "1h"]);
    let client = old.connect();
    client.echo(b"old");
    old.signal(Signal::TERM);
    client.expect_fin();
    let new = Daemon::start_unix(&path, &[]);
    new.connect().echo(b"new");
    client.send_fin();
    old.expect_success();
    new.connect().echo(b"still new");
    let mut rest = Vec::new();
    (&client.socket).read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}
