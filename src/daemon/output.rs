//! Writing to stdout and stderr such that nobody who reads them can stop, slow or end the daemon.
//!
//! A pipe whose reader has stopped fills up, and then write(2) sleeps: a single-threaded loop that
//! logs into it stands still with all its connections. `println!` also panics when the reader is
//! gone. So every line of the daemon goes through an [`NonBlockingWriter`], which writes what the descriptor
//! takes at once, drops the rest of the lines, and counts them.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

use crate::daemon::journal;

/// The longest line, its newline included; a longer one is cut. PIPE_BUF on Linux: up to this size a
/// pipe takes a line whole or not at all, whoever else writes to it.
const MAX_LINE_LEN: usize = 4096;

static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines, on stdout and stderr together, nobody took.
pub fn lines_dropped() -> u64 {
    LINES_DROPPED.load(Ordering::Relaxed)
}

/// Where lines go out: one descriptor, never waited for.
#[derive(Debug)]
pub struct NonBlockingWriter {
    descriptor: OwnedFd,
    mode: WriteMode,
    /// What is left of a line of which the kernel took a part. It goes first, so that no line is garbled.
    unwritten: Vec<u8>,
}

/// How to write without waiting. O_NONBLOCK on the descriptor that we were given is not the mode: the
/// flag belongs to the open file description, which the shell and its other children share. RWF_NOWAIT
/// is not, either: pipes know it only since Linux 6.4, terminals not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteMode {
    /// A pipe or terminal, opened again: the description is ours alone and has O_NONBLOCK.
    Reopened,
    /// A pipe or terminal that cannot be opened again (another user's, no /proc, a FIFO without a reader): ask
    /// poll(2) first. A pipe that is writable takes PIPE_BUF bytes at once, unless another process
    /// fills it in between; then we do wait. No portable call closes that gap.
    Polled,
    /// A socket, as the journal gives: send(2) with MSG_DONTWAIT.
    Socket,
    /// A file, or a device such as /dev/null. write(2) does not wait for a reader here (but it does
    /// for a disk). Not opened again: that would lose the offset and O_APPEND.
    File,
}

impl NonBlockingWriter {
    /// An writer to what `shared` is open on. The flags of `shared` stay as they are.
    pub fn new(shared: impl AsFd) -> io::Result<NonBlockingWriter> {
        let shared = shared.as_fd();
        let kind = FileType::from_raw_mode(rustix::fs::fstat(shared)?.st_mode);
        // What is open for reading only is not opened again: its EBADF shall be seen.
        let writable = rustix::fs::fcntl_getfl(shared)? & OFlags::RWMODE != OFlags::RDONLY;
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(shared, 3);
        let (descriptor, mode) = if kind == FileType::Socket {
            (duplicate()?, WriteMode::Socket)
        } else if writable && (kind == FileType::Fifo || shared.is_terminal()) {
            let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(ours) => (ours, WriteMode::Reopened),
                Err(_) => (duplicate()?, WriteMode::Polled),
            }
        } else {
            (duplicate()?, WriteMode::File)
        };
        Ok(NonBlockingWriter { descriptor, mode, unwritten: Vec::new() })
    }

    /// Writes a line, whole or not at all, now or never: one that nobody takes is dropped and counted.
    /// A newline is added where there is none. Returns whether it was accepted.
    pub fn write_line(&mut self, line: &[u8]) -> bool {
        let accepted = self.enqueue(line).is_ok();
        if !accepted {
            LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        accepted
    }

    /// As [`NonBlockingWriter::write_line`], for what the daemon's start hangs on: an writer that is broken (EPIPE,
    /// ENOSPC, EIO, EBADF) is an error. One that is full is not; the line is dropped and counted.
    pub fn try_write_line(&mut self, line: &str) -> io::Result<()> {
        match self.enqueue(line.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    fn enqueue(&mut self, line: &[u8]) -> io::Result<()> {
        self.flush()?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.unwritten.extend_from_slice(&line[..line.len().min(MAX_LINE_LEN - 1)]);
        self.unwritten.push(b'\n');
        let whole = self.unwritten.len();
        match self.flush() {
            Err(error) if self.unwritten.len() == whole => {
                self.unwritten.clear(); // Not a byte of it is out, so it can go.
                Err(error)
            }
            _ => Ok(()), // Out, or begun: then its rest waits for the next line.
        }
    }

    /// Writes what is unwritten, as far as it is accepted at once.
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
        if self.mode == WriteMode::Polled {
            let mut ready = [PollFd::new(&self.descriptor, PollFlags::OUT)];
            if rustix::event::poll(&mut ready, Some(&Timespec::default()))? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(match self.mode {
            WriteMode::Socket => {
                rustix::net::send(&self.descriptor, &self.unwritten, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?
            }
            WriteMode::Reopened | WriteMode::Polled | WriteMode::File => {
                rustix::io::write(&self.descriptor, &self.unwritten)?
            }
        })
    }
}

/// The one writer to stderr, for the log and for [`print_stderr`]. `None`: stderr cannot be written to at all.
fn stderr() -> MutexGuard<'static, Option<NonBlockingWriter>> {
    static STDERR: OnceLock<Mutex<Option<NonBlockingWriter>>> = OnceLock::new();
    let writer = STDERR.get_or_init(|| Mutex::new(NonBlockingWriter::new(io::stderr()).ok()));
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the writer to stderr, unless it is open.
pub(crate) fn open_stderr() {
    drop(stderr());
}

/// One line to stderr, past the log and its levels.
pub fn print_stderr(line: impl fmt::Display) {
    write_to_stderr(line.to_string().as_bytes());
}

/// As [`print_stderr`], for what ends the daemon: in the journal it is an error.
pub fn print_error(line: impl fmt::Display) {
    if journal::is_stderr() {
        print_stderr(format_args!("{}{line}", journal::level_prefix(Level::Error)))
    } else {
        print_stderr(line)
    }
}

pub(crate) fn write_to_stderr(line: &[u8]) {
    match &mut *stderr() {
        Some(writer) => {
            writer.write_line(line);
        }
        None => {
            LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{PipeReader, Read, Seek, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use super::*;

    impl NonBlockingWriter {
        /// Writes lines until one is dropped; returns their number. They divide a page, so that a pipe is full
        /// to the last byte.
        fn fill(&mut self) -> usize {
            (0..1000).find(|n| self.enqueue(&numbered(*n)).is_err()).expect("an output that fills up")
        }
    }

    fn numbered(n: usize) -> Vec<u8> {
        let mut line = format!("{n:0>1023}").into_bytes();
        line.push(b'\n');
        line
    }

    fn read_available(reader: &mut PipeReader) -> Vec<u8> {
        rustix::io::ioctl_fionbio(&*reader, true).expect("a pipe");
        let mut got = Vec::new();
        match reader.read_to_end(&mut got) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
            _ => got,
        }
    }

    /// The two ways to write to a pipe or terminal.
    fn both_modes(shared: impl AsFd) -> [NonBlockingWriter; 2] {
        let output = NonBlockingWriter::new(&shared).expect("an output");
        let descriptor = shared.as_fd().try_clone_to_owned().expect("a descriptor");
        #[cfg(target_os = "linux")]
        assert_eq!(output.mode, WriteMode::Reopened);
        [output, NonBlockingWriter { descriptor, mode: WriteMode::Polled, unwritten: Vec::new() }]
    }

    fn temp_path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("echod-output-{name}-{}", std::process::id()))
    }

    #[test]
    fn full_pipe_drops_and_counts_whole_lines() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        for mut output in both_modes(&writer) {
            let accepted = output.fill();
            let before = lines_dropped();
            output.write_line(b"dropped");
            output.try_write_line("dropped").expect("a full output is no error");
            assert!(lines_dropped() >= before + 2);
            let got = read_available(&mut reader);
            assert!(got == (0..accepted).flat_map(numbered).collect::<Vec<_>>(), "{accepted} whole lines");
            output.write_line(b"again");
            assert_eq!(read_available(&mut reader), b"again\n");
        }
    }

    #[test]
    fn closed_pipe_fails_at_startup_and_is_tolerated_later() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let [mut reopened, mut polled] = both_modes(&writer);
        drop(reader);
        let mut late = NonBlockingWriter::new(&writer).expect("an output");
        for output in [&mut reopened, &mut polled, &mut late] {
            let before = lines_dropped();
            output.write_line(b"nobody reads this");
            assert!(lines_dropped() > before);
            let error = output.try_write_line("nobody reads this").expect_err("an error");
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }

    #[test]
    fn shared_descriptor_stays_blocking() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let before = rustix::fs::fcntl_getfl(&writer).expect("flags");
        let mut output = NonBlockingWriter::new(&writer).expect("an output");
        output.fill();
        assert_eq!(rustix::fs::fcntl_getfl(&writer).expect("flags"), before);
        assert!(!before.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn full_socket_drops_lines_and_garbles_none() {
        let (mut reader, writer) = UnixStream::pair().expect("a pair");
        // As small as can be: the kernel takes a long line in pieces, and often only the first of them.
        socket2::SockRef::from(&writer).set_send_buffer_size(1).expect("an option");
        let mut output = NonBlockingWriter::new(&writer).expect("an output");
        assert_eq!(output.mode, WriteMode::Socket);
        let before = lines_dropped();
        let (mut got, mut cut) = (Vec::new(), 0);
        for n in 0..1000 {
            output.write_line(format!("{n:0>4095}").as_bytes());
            cut += usize::from(!output.unwritten.is_empty());
            let mut bytes = [0; 700];
            let read = reader.read(&mut bytes).expect("bytes");
            got.extend_from_slice(&bytes[..read]);
        }
        assert!(cut > 0 && lines_dropped() > before, "{cut} lines were cut");
        let lines: Vec<_> = got.chunks_exact(4096).map(|line| String::from_utf8_lossy(line)).collect();
        let numbers: Vec<usize> = lines.iter().map(|line| line.trim_end().parse().expect("a whole line")).collect();
        assert!(numbers.len() > 100 && numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        assert!(!rustix::fs::fcntl_getfl(&writer).expect("flags").contains(OFlags::NONBLOCK));
        drop(reader);
        assert_eq!(output.try_write_line("gone").expect_err("an error").kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn rest_of_partial_line_precedes_the_next() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut output = NonBlockingWriter::new(&writer).expect("an output");
        output.unwritten = b"st of one\n".to_vec(); // The kernel took "re".
        output.write_line(b"two");
        assert_eq!(read_available(&mut reader), b"st of one\ntwo\n");

        output.fill();
        output.unwritten = b"st of one\n".to_vec();
        output.write_line(b"two");
        assert_eq!(output.unwritten, b"st of one\n", "two is dropped, the rest waits");
        read_available(&mut reader);
        output.write_line(b"three");
        assert_eq!(read_available(&mut reader), b"st of one\nthree\n");
    }

    #[test]
    fn overlong_line_is_truncated_and_terminated() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut output = NonBlockingWriter::new(&writer).expect("an output");
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
        fs::write(&path, "before\n").expect("a file");
        let mut shared = OpenOptions::new().read(true).write(true).open(&path).expect("the file");
        shared.seek(io::SeekFrom::End(0)).expect("a file");
        let mut output = NonBlockingWriter::new(&shared).expect("an output");
        assert_eq!(output.mode, WriteMode::File);
        output.write_line(b"one");
        shared.write_all(b"theirs\n").expect("room"); // As another process that the shell gave it to.
        output.try_write_line("two").expect("room");
        assert_eq!(fs::read_to_string(&path).expect("text"), "before\none\ntheirs\ntwo\n");
        fs::remove_file(&path).expect("the file");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn full_disk_fails_at_startup_and_is_tolerated_later() {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let mut output = NonBlockingWriter::new(&full).expect("an output");
        let before = lines_dropped();
        output.write_line(b"no room");
        assert!(lines_dropped() > before);
        let error = output.try_write_line("no room").expect_err("an error");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(output.unwritten.is_empty());
    }

    #[test]
    fn read_only_descriptor_fails_at_startup_and_is_tolerated_later() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let file = File::open("/dev/null").expect("/dev/null");
        for shared in [OwnedFd::from(reader), OwnedFd::from(file)] {
            let mut output = NonBlockingWriter::new(&shared).expect("an output");
            output.write_line(b"nowhere");
            assert!(output.try_write_line("nowhere").is_err());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn stopped_terminal_drops_lines() {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(open).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a terminal");
        let terminal = ioctl_tiocgptpeer(&master, open).expect("a terminal");
        let mut output = NonBlockingWriter::new(&terminal).expect("an output");
        assert_eq!(output.mode, WriteMode::Reopened);
        output.fill();
        assert!(!rustix::fs::fcntl_getfl(&terminal).expect("flags").contains(OFlags::NONBLOCK));
        drop(master); // The window is closed: EIO.
        let before = lines_dropped();
        output.write_line(b"nobody is there");
        assert!(lines_dropped() > before);
    }
}
