//! Files of Unix sockets: a stale one is replaced at startup, and our own is removed at exit.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// Removes the file of a Unix socket that no process listens on. Leaves anything else at `path` alone and returns a
/// description of it; `None` means that the path is free now.
///
/// Connecting is also refused between bind(2) and listen(2) of another process. Two daemons that start within the same
/// microseconds on one path can therefore take each other's file for a stale one. Only a lock file would prevent that, and
/// it would be left behind after a crash.
pub(super) fn remove_stale(path: &Path) -> io::Result<Option<&'static str>> {
    let before = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    if !before.file_type().is_socket() {
        return Ok(Some(match before.file_type() {
            kind if kind.is_dir() => "a directory already exists there",
            kind if kind.is_symlink() => "a symbolic link already exists there",
            _ => "a file that is not a socket already exists there",
        }));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?; // Connecting to a listener with a full backlog would block.
    let hint = probe_result(probe.connect(&SockAddr::unix(path)?))?;
    if hint.is_none() {
        // Another server may have taken over the path in the meantime. A race of microseconds remains, because no system
        // call unlinks by inode.
        remove_if_same(path, (before.dev(), before.ino()))?;
    }
    Ok(hint)
}

/// Interprets the result of connecting to the socket at a path. Returns `None` if no process listens on it, which only
/// ECONNREFUSED and ENOENT (the file is gone as well) mean. Otherwise returns a description of what is there.
fn probe_result(result: io::Result<()>) -> io::Result<Option<&'static str>> {
    const ALIVE: Option<&str> = Some("another process is already listening on it");
    let Err(error) = result else { return Ok(ALIVE) };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Some(Errno::AGAIN) => Ok(ALIVE), // The backlog is full.
        Some(Errno::PROTOTYPE) => Ok(Some("a socket of another type already exists there")),
        Some(Errno::ACCESS) => Ok(Some("permission denied when probing the existing socket")),
        _ => Err(error),
    }
}

/// The file of our bound Unix socket. Dropping it removes the file, if the path still leads to our socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Remembers the file at `path`, which is made absolute in case the working directory changes.
    pub(super) fn of(path: &Path) -> io::Result<SocketFile> {
        let path = std::path::absolute(path)?;
        let metadata = fs::symlink_metadata(&path)?;
        Ok(SocketFile { path, identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove_if_same(&self.path, self.identity) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Unlinks `path` if it still leads to the file with this device and inode number. A file that is gone already is not an
/// error.
fn remove_if_same(path: &Path, identity: (u64, u64)) -> io::Result<()> {
    let is_same = |now: &fs::Metadata| (now.dev(), now.ino()) == identity;
    match fs::symlink_metadata(path).and_then(|now| if is_same(&now) { fs::remove_file(path) } else { Ok(()) }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener as StdUnixListener};

    use super::*;
    use crate::listen::is_errno;
    use crate::listen::listener::Accepted;
    use crate::listen::socket::ListenOptions;
    use crate::listen::test_support::{Directory, OPTIONS, address, bind, refused, soon};

    #[test]
    fn stale_socket_file_is_replaced() {
        let directory = Directory::new("stale");
        drop(StdUnixListener::bind(directory.path("s")).expect("listener")); // std leaves the file.
        assert!(directory.path("s").exists());
        bind(&directory.unix("s"));
    }

    #[test]
    fn live_listener_with_full_backlog_is_left_alone() {
        let directory = Directory::new("live");
        let path = directory.path("s");
        let one = ListenOptions { backlog: 1, ..OPTIONS };
        let mut listener = address(&directory.unix("s")).bind(&one).expect("listener").remove(0);
        let expected = format!(
            "cannot listen on unix:{}: {}: another process is already listening on it",
            path.display(),
            io::Error::from(Errno::ADDRINUSE)
        );
        assert_eq!(refused(&directory.unix("s")), expected);
        let mut queued = Vec::new();
        let full = loop {
            assert!(queued.len() < 100, "the backlog should fill up");
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
            client.set_nonblocking(true).expect("socket");
            match client.connect(&SockAddr::unix(&path).expect("path")) {
                Ok(()) => queued.push(client),
                Err(error) => break error,
            }
        };
        assert!(is_errno(&full, Errno::AGAIN), "{full}");
        assert_eq!(refused(&directory.unix("s")), expected);
        assert!(matches!(soon(|| listener.accept()), Accepted::Unix(_)));
    }

    #[test]
    fn other_files_at_the_path_are_left_alone() {
        let directory = Directory::new("other");
        fs::write(directory.path("file"), "precious").expect("file");
        fs::create_dir(directory.path("directory")).expect("directory");
        drop(StdUnixListener::bind(directory.path("stale")).expect("listener"));
        std::os::unix::fs::symlink(directory.path("stale"), directory.path("link")).expect("symbolic link");
        let _datagram = UnixDatagram::bind(directory.path("datagram")).expect("socket");
        for (name, hint) in [
            ("file", "a file that is not a socket already exists there"),
            ("directory", "a directory already exists there"),
            ("link", "a symbolic link already exists there"),
            ("datagram", "a socket of another type already exists there"),
        ] {
            let error = refused(&directory.unix(name));
            assert!(error.ends_with(hint), "{error}");
            assert!(fs::symlink_metadata(directory.path(name)).is_ok(), "{name}");
        }
        assert_eq!(fs::read(directory.path("file")).expect("file content"), b"precious");
        assert!(directory.path("stale").exists());
    }

    #[test]
    fn only_connection_refused_means_stale() {
        let alive = "another process is already listening on it";
        for (errno, hint) in [
            (Errno::CONNREFUSED, None),
            (Errno::NOENT, None),
            (Errno::AGAIN, Some(alive)),
            (Errno::PROTOTYPE, Some("a socket of another type already exists there")),
            (Errno::ACCESS, Some("permission denied when probing the existing socket")),
        ] {
            assert_eq!(probe_result(Err(errno.into())).expect("a result without an error"), hint, "{errno:?}");
        }
        assert_eq!(probe_result(Ok(())).expect("a result without an error"), Some(alive));
        assert!(is_errno(
            &probe_result(Err(Errno::NOMEM.into())).expect_err("an unexpected error is reported"),
            Errno::NOMEM
        ));
    }

    #[test]
    fn missing_file_is_success_but_other_errors_are_reported() {
        let directory = Directory::new("gone");
        let path = directory.path("s");
        assert!(remove_stale(&path).expect("nothing exists there").is_none());
        remove_if_same(&path, (0, 0)).expect("nothing to do");
        fs::write(&path, "a file in place of a directory").expect("file");
        assert!(is_errno(&remove_stale(&path.join("s")).expect_err("the parent is not a directory"), Errno::NOTDIR));
        assert!(is_errno(
            &remove_if_same(&path.join("s"), (0, 0)).expect_err("the parent is not a directory"),
            Errno::NOTDIR
        ));
    }

    #[test]
    fn replaced_socket_file_is_not_removed() {
        let directory = Directory::new("replaced");
        let ours = bind(&directory.unix("s"));
        fs::remove_file(directory.path("s")).expect("our socket file");
        let _theirs = StdUnixListener::bind(directory.path("s")).expect("listener");
        drop(ours);
        assert!(std::os::unix::net::UnixStream::connect(directory.path("s")).is_ok());
    }
}
