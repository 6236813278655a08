//! Writes lines in a thread of its own, for descriptors on which nothing else keeps write(2) from blocking.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::daemon::output::count_dropped_line;

/// The maximum number of lines that wait for the thread. A line has at most 4 KiB, so a stopped terminal costs 1 MiB at most.
/// Fewer would drop lines of a burst at `trace` before the thread is scheduled.
pub(crate) const MAX_QUEUED_LINES: usize = 256;

/// How long to wait for the thread at startup and again at exit. A terminal that is read takes well under a millisecond; one
/// that is stopped delays each by this much.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// The sending side of the thread.
#[derive(Debug)]
pub struct WriterThread {
    lines: SyncSender<Line>,
    /// Whether the thread has failed to catch up within [`MAX_WAIT`].
    is_stuck: bool,
}

/// A line to write, and where to report the result if the sender waits for it.
struct Line {
    bytes: Vec<u8>,
    result: Option<SyncSender<io::Result<()>>>,
}

impl WriterThread {
    /// Starts a thread that writes to `descriptor`. It ends with the process; on a terminal that is never read again, it sleeps
    /// in write(2) until then.
    pub fn start(descriptor: OwnedFd) -> io::Result<WriterThread> {
        let (lines, queue) = mpsc::sync_channel(MAX_QUEUED_LINES);
        thread::Builder::new().name("output".into()).spawn(move || write_lines(&descriptor, &queue))?;
        Ok(WriterThread { lines, is_stuck: false })
    }

    /// Queues a line. Returns `WouldBlock` if the queue is full.
    pub fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.lines.try_send(Line { bytes, result: None }).map_err(to_io_error)
    }

    /// Queues a line and waits for it for a moment. Returns the error if writing fails. A line that is still queued after
    /// [`MAX_WAIT`] is not an error: it is written when the reader continues. Later lines are not waited for then.
    pub fn send_and_wait(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        if self.is_stuck {
            return self.send(bytes);
        }
        let (sender, result) = mpsc::sync_channel(1);
        self.lines.try_send(Line { bytes, result: Some(sender) }).map_err(to_io_error)?;
        match result.recv_timeout(MAX_WAIT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                self.is_stuck = true;
                Ok(())
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for a moment until everything queued is written. For the end of the process, which ends the thread.
    pub fn flush(&mut self) {
        self.is_stuck = false; // It may have caught up since.
        let _ = self.send_and_wait(Vec::new()); // An error of an earlier line has been counted.
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.flush();
    }
}

fn to_io_error(error: TrySendError<Line>) -> io::Error {
    match error {
        TrySendError::Full(_) => io::ErrorKind::WouldBlock.into(),
        TrySendError::Disconnected(_) => io::ErrorKind::BrokenPipe.into(),
    }
}

/// Writes lines until the sender is dropped. Blocks in write(2), which is what this thread is for.
fn write_lines(descriptor: &OwnedFd, queue: &Receiver<Line>) {
    for Line { bytes, result } in queue {
        let outcome = write_all(descriptor, &bytes);
        match result {
            Some(result) => drop(result.try_send(outcome)), // Fails if the sender has stopped waiting.
            None if outcome.is_err() => count_dropped_line(),
            None => {}
        }
    }
}

fn write_all(descriptor: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(descriptor, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Another process has set O_NONBLOCK on the file description that we share.
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(&mut [PollFd::new(descriptor, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use super::*;

    #[test]
    fn lines_are_written_in_order() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let thread = WriterThread::start(writer.into()).expect("thread");
        for n in 0..100 {
            thread.send(format!("{n}\n").into_bytes()).expect("room in the queue");
        }
        drop(thread);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        assert_eq!(text, (0..100).map(|n| format!("{n}\n")).collect::<String>());
    }

    #[test]
    fn full_queue_is_reported_without_blocking() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let mut thread = WriterThread::start(writer.into()).expect("thread");
        let line = || vec![b'x'; 4096];
        // What the pipe holds, a line that the thread is writing, and the queue. The thread may be late.
        for _ in 0..65_536 / 4096 + 1 + MAX_QUEUED_LINES {
            while thread.send(line()).is_err() {
                thread::yield_now();
            }
        }
        assert_eq!(thread.send(line()).expect_err("full queue").kind(), io::ErrorKind::WouldBlock);
        assert_eq!(thread.send_and_wait(line()).expect_err("full queue").kind(), io::ErrorKind::WouldBlock);
        reader.read_exact(&mut [0; 1 << 20]).expect("queued lines");
        while thread.send_and_wait(b"more\n".to_vec()).is_err() {
            thread::yield_now(); // Until the thread has taken a line from the queue.
        }
    }

    #[test]
    fn nonblocking_descriptor_loses_nothing() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("pipe");
        let thread = WriterThread::start(writer.into()).expect("thread");
        for _ in 0..100 {
            thread.send(vec![b'x'; 4096]).expect("room in the queue");
        }
        reader.read_exact(&mut [0; 100 * 4096]).expect("all lines");
    }

    #[test]
    fn stuck_reader_is_waited_for_once() {
        let (_reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(&[b'x'; 65_536]).expect("room in the pipe");
        let mut thread = WriterThread::start(writer.into()).expect("thread");
        let mut wait = || {
            let start = Instant::now();
            thread.send_and_wait(b"line\n".to_vec()).expect("queued");
            start.elapsed()
        };
        assert!(wait() >= MAX_WAIT);
        let later: Duration = (0..100).map(|_| wait()).sum();
        assert!(later < 50 * MAX_WAIT, "waited {later:?} for a thread that is known to be stuck");
    }
}
