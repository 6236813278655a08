//! Non-blocking output to stdout and stderr: a stalled or vanished reader can never block, slow down or kill the daemon.
//!
//! A pipe whose reader has stopped fills up, and then write(2) sleeps. A single-threaded loop that logs into such a pipe stops
//! serving all of its connections. `println!` also panics when the reader is gone. So every line of the daemon goes through a
//! [`NonBlockingWriter`], which writes lines only while the descriptor accepts them at once, and drops and counts the others.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use log::Level;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

use crate::daemon::journal;
use crate::daemon::writer_thread::WriterThread;

/// The maximum length of a line in bytes, including its newline; a longer line is truncated. This is PIPE_BUF on Linux: up to
/// this size, a pipe accepts a line entirely or not at all, even if other processes write to it.
const MAX_LINE_LEN: usize = 4096;

static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines dropped on stdout and stderr.
pub fn lines_dropped() -> u64 {
    LINES_DROPPED.load(Ordering::Relaxed)
}

/// Counts a line that could not be written.
pub(crate) fn count_dropped_line() {
    LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
}

/// Writes whole lines to one descriptor and never blocks.
#[derive(Debug)]
pub struct NonBlockingWriter(Route);

#[derive(Debug)]
enum Route {
    /// write(2) or send(2), in a way that does not block.
    Direct(DirectWriter),
    /// A thread that may block: for a terminal or pipe that cannot be opened again, because it belongs to another user, there is
    /// no /proc, or a FIFO has no reader. poll(2) before each write would not be enough. It reports a terminal as writable if
    /// there is room for one byte, and the write of a line then sleeps; so does any write while another process is asleep in
    /// one, and a write to a pipe that another process has filled since.
    Thread(WriterThread),
}

impl NonBlockingWriter {
    /// Creates a writer to the file, pipe, socket or terminal behind `shared`, without changing the flags of `shared`.
    ///
    /// Setting O_NONBLOCK on the inherited descriptor is not an option: the flag belongs to the open file description, which the
    /// shell and its other children share. Neither is RWF_NOWAIT: pipes support it only since Linux 6.4, terminals not at all.
    pub fn new(shared: impl AsFd) -> io::Result<NonBlockingWriter> {
        let shared = shared.as_fd();
        let kind = FileType::from_raw_mode(rustix::fs::fstat(shared)?.st_mode);
        // A read-only descriptor is not opened again, so that its EBADF is reported.
        let writable = rustix::fs::fcntl_getfl(shared)? & OFlags::RWMODE != OFlags::RDONLY;
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(shared, 3);
        let (descriptor, mode) = if kind == FileType::Socket {
            (duplicate()?, WriteMode::Socket)
        } else if writable && (kind == FileType::Fifo || shared.is_terminal()) {
            let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(ours) => (ours, WriteMode::Reopened),
                Err(_) => return Ok(NonBlockingWriter(Route::Thread(WriterThread::start(duplicate()?)?))),
            }
        } else {
            (duplicate()?, WriteMode::File)
        };
        Ok(NonBlockingWriter(Route::Direct(DirectWriter { descriptor, mode, unwritten: Vec::new() })))
    }

    /// Writes a line, and a newline if it does not end with one. A line that is not accepted at once is dropped and counted.
    /// Returns whether it was accepted.
    pub fn write_line(&mut self, line: &[u8]) -> bool {
        let result = match &mut self.0 {
            Route::Direct(writer) => writer.enqueue(line),
            Route::Thread(thread) => thread.send(terminated(line)),
        };
        if result.is_err() {
            count_dropped_line();
        }
        result.is_ok()
    }

    /// Writes a line like [`NonBlockingWriter::write_line`], but returns an error if the descriptor is broken (EPIPE, ENOSPC,
    /// EFBIG, EIO, EBADF). A full pipe is not an error: the line is dropped and counted.
    pub fn try_write_line(&mut self, line: &str) -> io::Result<()> {
        let result = match &mut self.0 {
            Route::Direct(writer) => writer.enqueue(line.as_bytes()),
            Route::Thread(thread) => thread.send_and_wait(terminated(line.as_bytes())),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                count_dropped_line();
                Ok(())
            }
            result => result,
        }
    }
}

/// Returns the line with a single newline at its end, truncated to [`MAX_LINE_LEN`].
fn terminated(line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    [&line[..line.len().min(MAX_LINE_LEN - 1)], b"\n"].concat()
}

/// Writes to a descriptor in a way that does not block.
#[derive(Debug)]
struct DirectWriter {
    descriptor: OwnedFd,
    mode: WriteMode,
    /// The rest of a line of which the kernel accepted only a part. It is written first, so that no line is garbled.
    unwritten: Vec<u8>,
}

/// Why a write to the descriptor does not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteMode {
    /// A pipe or terminal that was opened again: the new file description is not shared and has O_NONBLOCK.
    Reopened,
    /// A socket, such as the journal's: send(2) with MSG_DONTWAIT.
    Socket,
    /// A file, or a device such as /dev/null: write(2) waits for a disk at most, never for a reader. It is not opened again,
    /// because that would lose the offset and O_APPEND.
    File,
}

impl DirectWriter {
    /// Adds a line to the unwritten bytes and flushes them. Returns an error if no byte of the line was accepted.
    fn enqueue(&mut self, line: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.unwritten = terminated(line);
        let whole = self.unwritten.len();
        match self.flush() {
            Err(error) if self.unwritten.len() == whole => {
                self.unwritten.clear(); // No byte of it was written, so the whole line can be dropped.
                Err(error)
            }
            _ => Ok(()), // Written at least in part; the next line flushes the rest.
        }
    }

    /// Writes as many of the unwritten bytes as are accepted at once.
    fn flush(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            match self.write() {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.unwritten.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&self) -> io::Result<usize> {
        Ok(match self.mode {
            WriteMode::Socket => {
                rustix::net::send(&self.descriptor, &self.unwritten, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?
            }
            WriteMode::Reopened | WriteMode::File => rustix::io::write(&self.descriptor, &self.unwritten)?,
        })
    }
}

/// Returns the writer to stderr that the log and [`print_stderr`] share; `None` if stderr cannot be written to at all.
fn stderr() -> MutexGuard<'static, Option<NonBlockingWriter>> {
    static STDERR: OnceLock<Mutex<Option<NonBlockingWriter>>> = OnceLock::new();
    let writer = STDERR.get_or_init(|| Mutex::new(NonBlockingWriter::new(io::stderr()).ok()));
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the writer to stderr, unless it is open already.
pub(crate) fn open_stderr() {
    drop(stderr());
}

/// Waits for a moment until stderr has what was written to it, if a thread writes there. Call this before the process ends.
pub fn flush_stderr() {
    if let Some(NonBlockingWriter(Route::Thread(thread))) = &mut *stderr() {
        thread.flush();
    }
}

/// Prints one line to stderr, regardless of the log level.
pub fn print_stderr(line: impl fmt::Display) {
    write_to_stderr(line.to_string().as_bytes());
}

/// Prints one line to stderr like [`print_stderr`], with the priority of an error in the journal. For errors that end the daemon.
pub fn print_error(line: impl fmt::Display) {
    if journal::is_stderr() {
        print_stderr(format_args!("{}{line}", journal::level_prefix(Level::Error)))
    } else {
        print_stderr(line)
    }
}

/// Writes one line to stderr as it is.
pub(crate) fn write_to_stderr(line: &[u8]) {
    match &mut *stderr() {
        Some(writer) => {
            writer.write_line(line);
        }
        None => count_dropped_line(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{PipeReader, Read, Seek, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::daemon::writer_thread::MAX_QUEUED_LINES;

    impl NonBlockingWriter {
        /// Writes lines until one is dropped and returns their number. Their length divides a page, so that a pipe is full
        /// to the last byte.
        fn fill(&mut self) -> usize {
            (0..1000).find(|n| !self.write_line(&numbered(*n))).expect("descriptor should fill up")
        }

        fn direct(&mut self) -> &mut DirectWriter {
            match &mut self.0 {
                Route::Direct(writer) => writer,
                Route::Thread(thread) => panic!("expected a direct writer, got {thread:?}"),
            }
        }

        /// Waits for the thread, if there is one.
        fn flush(&mut self) {
            if let Route::Thread(thread) = &mut self.0 {
                thread.flush();
            }
        }
    }

    fn numbered(n: usize) -> Vec<u8> {
        let mut line = format!("{n:0>1023}").into_bytes();
        line.push(b'\n');
        line
    }

    fn read_available(reader: &mut PipeReader) -> Vec<u8> {
        rustix::io::ioctl_fionbio(&*reader, true).expect("pipe");
        let mut got = Vec::new();
        match reader.read_to_end(&mut got) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
            _ => got,
        }
    }

    /// Returns a writer for each of the two routes to a pipe or terminal.
    fn both_routes(shared: impl AsFd) -> [NonBlockingWriter; 2] {
        let mut output = NonBlockingWriter::new(&shared).expect("writer");
        let descriptor = shared.as_fd().try_clone_to_owned().expect("descriptor");
        #[cfg(target_os = "linux")]
        assert_eq!(output.direct().mode, WriteMode::Reopened);
        [output, NonBlockingWriter(Route::Thread(WriterThread::start(descriptor).expect("thread")))]
    }

    fn temp_path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("echod-output-{name}-{}", std::process::id()))
    }

    #[test]
    fn full_pipe_drops_and_counts_whole_lines() {
        let mut accepted = 0;
        for route in 0..2 {
            let (mut reader, writer) = io::pipe().expect("pipe");
            let mut output = both_routes(&writer).into_iter().nth(route).expect("two routes");
            drop(writer);
            if route == 0 {
                accepted = output.fill();
            } else {
                // As many as above, one that the thread is writing, and the queue. The thread may be late.
                accepted += 1 + MAX_QUEUED_LINES;
                for n in 0..accepted {
                    while !output.write_line(&numbered(n)) {
                        thread::yield_now();
                    }
                }
            }
            let before = lines_dropped();
            output.write_line(b"dropped");
            output.try_write_line("dropped").expect("a full pipe should not be an error");
            assert!(lines_dropped() >= before + 2);
            let reading = thread::spawn(move || {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).expect("whole lines");
                got
            });
            while !output.write_line(b"again") {
                thread::yield_now(); // Until the pipe has been read.
            }
            drop(output); // Ends the thread, and with it the pipe.
            let mut expected: Vec<u8> = (0..accepted).flat_map(numbered).collect();
            expected.extend_from_slice(b"again\n");
            assert!(reading.join().expect("reader") == expected, "route {route}: {accepted} whole lines");
        }
    }

    #[test]
    fn closed_pipe_fails_at_startup_and_is_tolerated_later() {
        let (reader, writer) = io::pipe().expect("pipe");
        let [mut reopened, mut threaded] = both_routes(&writer);
        drop(reader);
        let mut late = NonBlockingWriter::new(&writer).expect("writer");
        for output in [&mut reopened, &mut threaded, &mut late] {
            let before = lines_dropped();
            output.write_line(b"unread");
            output.flush();
            assert!(lines_dropped() > before);
            let error = output.try_write_line("unread").expect_err("line should be refused");
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }

    #[test]
    fn shared_descriptor_stays_blocking() {
        let (_reader, writer) = io::pipe().expect("pipe");
        let before = rustix::fs::fcntl_getfl(&writer).expect("flags");
        let mut output = NonBlockingWriter::new(&writer).expect("writer");
        output.fill();
        assert_eq!(rustix::fs::fcntl_getfl(&writer).expect("flags"), before);
        assert!(!before.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn full_socket_drops_lines_and_garbles_none() {
        let (mut reader, writer) = UnixStream::pair().expect("socket pair");
        // With the smallest send buffer, the kernel accepts a long line in parts, and often only the first of them.
        socket2::SockRef::from(&writer).set_send_buffer_size(1).expect("socket option");
        let mut output = NonBlockingWriter::new(&writer).expect("writer");
        assert_eq!(output.direct().mode, WriteMode::Socket);
        let before = lines_dropped();
        let (mut got, mut cut) = (Vec::new(), 0);
        for n in 0..1000 {
            output.write_line(format!("{n:0>4095}").as_bytes());
            cut += usize::from(!output.direct().unwritten.is_empty());
            let mut bytes = [0; 700];
            let read = reader.read(&mut bytes).expect("bytes");
            got.extend_from_slice(&bytes[..read]);
        }
        assert!(cut > 0 && lines_dropped() > before, "{cut} lines were accepted in part");
        let lines: Vec<_> = got.chunks_exact(4096).map(|line| String::from_utf8_lossy(line)).collect();
        let numbers: Vec<usize> = lines.iter().map(|line| line.trim_end().parse().expect("whole line")).collect();
        assert!(numbers.len() > 100 && numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        assert!(!rustix::fs::fcntl_getfl(&writer).expect("flags").contains(OFlags::NONBLOCK));
        drop(reader);
        assert_eq!(
            output.try_write_line("gone").expect_err("line should be refused").kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn rest_of_partial_line_precedes_the_next() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let mut output = NonBlockingWriter::new(&writer).expect("writer");
        output.direct().unwritten = b"st of one\n".to_vec(); // The kernel accepted "re".
        output.write_line(b"two");
        assert_eq!(read_available(&mut reader), b"st of one\ntwo\n");

        output.fill();
        output.direct().unwritten = b"st of one\n".to_vec();
        output.write_line(b"two");
        assert_eq!(output.direct().unwritten, b"st of one\n", "the new line should be dropped, the rest kept");
        read_available(&mut reader);
        output.write_line(b"three");
        assert_eq!(read_available(&mut reader), b"st of one\nthree\n");
    }

    #[test]
    fn overlong_line_is_truncated_and_terminated() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let mut output = NonBlockingWriter::new(&writer).expect("writer");
        output.write_line(&[b'x'; 3 * MAX_LINE_LEN]);
        output.write_line(b"");
        output.write_line(b"with\n");
        let mut expected = vec![b'x'; MAX_LINE_LEN - 1];
        expected.extend_from_slice(b"\n\nwith\n");
        assert!(read_available(&mut reader) == expected);
    }

    #[test]
    fn file_is_appended_to_with_shared_offset() {
        let path = temp_path("append");
        fs::write(&path, "before\n").expect("file");
        let mut shared = OpenOptions::new().read(true).write(true).open(&path).expect("file");
        shared.seek(io::SeekFrom::End(0)).expect("file");
        let mut output = NonBlockingWriter::new(&shared).expect("writer");
        assert_eq!(output.direct().mode, WriteMode::File);
        output.write_line(b"one");
        shared.write_all(b"theirs\n").expect("line should be written"); // Like another process that shares the descriptor.
        output.try_write_line("two").expect("line should be written");
        assert_eq!(fs::read_to_string(&path).expect("UTF-8"), "before\none\ntheirs\ntwo\n");
        fs::remove_file(&path).expect("file");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn full_disk_fails_at_startup_and_is_tolerated_later() {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let mut output = NonBlockingWriter::new(&full).expect("writer");
        let before = lines_dropped();
        output.write_line(b"no room");
        assert!(lines_dropped() > before);
        let error = output.try_write_line("no room").expect_err("line should be refused");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(output.direct().unwritten.is_empty());
    }

    #[test]
    fn read_only_descriptor_fails_at_startup_and_is_tolerated_later() {
        let (reader, _writer) = io::pipe().expect("pipe");
        let file = File::open("/dev/null").expect("/dev/null");
        for shared in [OwnedFd::from(reader), OwnedFd::from(file)] {
            let mut output = NonBlockingWriter::new(&shared).expect("writer");
            output.write_line(b"nowhere");
            assert!(output.try_write_line("nowhere").is_err());
        }
    }

    /// Returns both ends of a new terminal.
    #[cfg(target_os = "linux")]
    fn terminal() -> (OwnedFd, OwnedFd) {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(open).expect("terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("terminal");
        let terminal = ioctl_tiocgptpeer(&master, open).expect("terminal");
        (master, terminal)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn stopped_terminal_drops_lines() {
        for route in 0..2 {
            let (master, terminal) = terminal();
            let (done, finished) = mpsc::channel();
            let mut output = both_routes(&terminal).into_iter().nth(route).expect("two routes");
            let writing = thread::spawn(move || {
                // Short lines, because poll(2) reports a terminal with room for one byte as writable.
                while output.write_line(b"a line of the log, longer than the room that is left") {}
                output.fill();
                done.send(()).expect("waiting test");
                output
            });
            finished.recv_timeout(Duration::from_secs(10)).expect("writing to a stopped terminal should not block");
            assert!(!rustix::fs::fcntl_getfl(&terminal).expect("flags").contains(OFlags::NONBLOCK));
            let mut output = writing.join().expect("writer");
            drop(master); // The terminal window is closed: EIO.
            let before = lines_dropped();
            output.write_line(b"unread");
            output.flush();
            assert!(lines_dropped() > before);
        }
    }
}
