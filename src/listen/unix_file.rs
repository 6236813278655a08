//! The life of a Unix socket's file: a stale one is replaced, our own is removed.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// Removes the file of a socket whose server is dead; whatever else is there is left alone, and said.
///
/// Between bind(2) and listen(2) a server refuses, too, so two daemons that start in the same
/// microseconds on one path can take each other for dead: only a lock file would help, and it would
/// outlive them.
pub(super) fn remove_stale(path: &Path) -> io::Result<Option<&'static str>> {
    let before = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    if !before.file_type().is_socket() {
        return Ok(Some(match before.file_type() {
            kind if kind.is_dir() => "there is a directory",
            kind if kind.is_symlink() => "there is a symbolic link",
            _ => "there is a file that is no socket",
        }));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?; // It must not wait for room in a full queue.
    let hint = probe_result(probe.connect(&SockAddr::unix(path)?))?;
    if hint.is_none() {
        // The name may have gone to a living server meanwhile. A window of microseconds stays: no call
        // unlinks by inode.
        remove_if_same(path, (before.dev(), before.ino()))?;
    }
    Ok(hint)
}

/// Who is behind a socket's file, by what connect(2) says. Only ECONNREFUSED says that nobody is, and
/// ENOENT that the file has gone as well.
fn probe_result(answer: io::Result<()>) -> io::Result<Option<&'static str>> {
    const ALIVE: Option<&str> = Some("another process listens there");
    let Err(error) = answer else { return Ok(ALIVE) };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Some(Errno::AGAIN) => Ok(ALIVE), // Its queue is full.
        Some(Errno::PROTOTYPE) => Ok(Some("there is a socket of another type")),
        Some(Errno::ACCESS) => Ok(Some("there is a socket that we may not connect to")),
        _ => Err(error),
    }
}

/// The file that a bound Unix socket has. Removed when dropped, if the name still means our socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// `path` as it is now, made absolute: it must mean the same file when we go.
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

/// Unlinks `path` if it still is the file of this device and inode number. One that has gone already is no error.
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
        drop(StdUnixListener::bind(directory.path("s")).expect("a listener")); // std leaves the file.
        assert!(directory.path("s").exists());
        bind(&directory.unix("s"));
    }

    #[test]
    fn live_listener_with_full_backlog_is_left_alone() {
        let directory = Directory::new("live");
        let path = directory.path("s");
        let one = ListenOptions { backlog: 1, ..OPTIONS };
        let mut listener = address(&directory.unix("s")).bind(&one).expect("a listener").remove(0);
        let wanted = format!(
            "cannot listen on unix:{}: {}: another process listens there",
            path.display(),
            io::Error::from(Errno::ADDRINUSE)
        );
        assert_eq!(refused(&directory.unix("s")), wanted);
        let mut queued = Vec::new();
        let full = loop {
            assert!(queued.len() < 100, "the backlog holds");
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
            client.set_nonblocking(true).expect("a socket");
            match client.connect(&SockAddr::unix(&path).expect("a path")) {
                Ok(()) => queued.push(client),
                Err(error) => break error,
            }
        };
        assert!(is_errno(&full, Errno::AGAIN), "{full}");
        assert_eq!(refused(&directory.unix("s")), wanted);
        assert!(matches!(soon(|| listener.accept()), Accepted::Unix(_)));
    }

    #[test]
    fn other_files_at_the_path_are_left_alone() {
        let directory = Directory::new("other");
        fs::write(directory.path("file"), "precious").expect("a file");
        fs::create_dir(directory.path("directory")).expect("a directory");
        drop(StdUnixListener::bind(directory.path("stale")).expect("a listener"));
        std::os::unix::fs::symlink(directory.path("stale"), directory.path("link")).expect("a link");
        let _datagram = UnixDatagram::bind(directory.path("datagram")).expect("a socket");
        for (name, hint) in [
            ("file", "there is a file that is no socket"),
            ("directory", "there is a directory"),
            ("link", "there is a symbolic link"),
            ("datagram", "there is a socket of another type"),
        ] {
            let error = refused(&directory.unix(name));
            assert!(error.ends_with(hint), "{error}");
            assert!(fs::symlink_metadata(directory.path(name)).is_ok(), "{name}");
        }
        assert_eq!(fs::read(directory.path("file")).expect("the file"), b"precious");
        assert!(directory.path("stale").exists());
    }

    #[test]
    fn only_connection_refused_means_stale() {
        let alive = "another process listens there";
        for (errno, hint) in [
            (Errno::CONNREFUSED, None),
            (Errno::NOENT, None),
            (Errno::AGAIN, Some(alive)),
            (Errno::PROTOTYPE, Some("there is a socket of another type")),
            (Errno::ACCESS, Some("there is a socket that we may not connect to")),
        ] {
            assert_eq!(probe_result(Err(errno.into())).expect("an answer"), hint, "{errno:?}");
        }
        assert_eq!(probe_result(Ok(())).expect("an answer"), Some(alive));
        assert!(is_errno(&probe_result(Err(Errno::NOMEM.into())).expect_err("no answer"), Errno::NOMEM));
    }

    #[test]
    fn missing_file_is_success_but_other_errors_are_reported() {
        let directory = Directory::new("gone");
        let path = directory.path("s");
        assert!(remove_stale(&path).expect("nothing there").is_none());
        remove_if_same(&path, (0, 0)).expect("nothing to do");
        fs::write(&path, "a file where a directory is to be").expect("a file");
        assert!(is_errno(&remove_stale(&path.join("s")).expect_err("no directory"), Errno::NOTDIR));
        assert!(is_errno(&remove_if_same(&path.join("s"), (0, 0)).expect_err("no directory"), Errno::NOTDIR));
    }

    #[test]
    fn replaced_socket_file_is_not_removed() {
        let directory = Directory::new("replaced");
        let ours = bind(&directory.unix("s"));
        fs::remove_file(directory.path("s")).expect("our file");
        let _theirs = StdUnixListener::bind(directory.path("s")).expect("a listener");
        drop(ours);
        assert!(std::os::unix::net::UnixStream::connect(directory.path("s")).is_ok());
    }
}
