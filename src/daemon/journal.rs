//! The systemd journal: whether stderr is connected to it, and the prefixes for its priorities.

use std::os::fd::AsFd;
use std::{env, io};

use log::Level;

/// Returns whether stderr is connected to the journal. systemd sets JOURNAL_STREAM to the device and inode of its socket. The
/// variable alone proves nothing, because processes whose stderr goes elsewhere inherit it: systemd.exec(5).
pub fn is_stderr() -> bool {
    env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, io::stderr()))
}

/// Returns whether `descriptor` is the file that `stream` identifies by `DEVICE:INODE`.
fn is_stream(stream: &str, descriptor: impl AsFd) -> bool {
    let Ok(is) = rustix::fs::fstat(descriptor) else { return false };
    stream
        .split_once(':')
        .is_some_and(|(device, inode)| device.parse() == Ok(is.st_dev) && inode.parse() == Ok(is.st_ino))
}

/// Returns the prefix for a level. syslog(3) has a single level below `info`.
pub fn level_prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn journal_is_recognized_by_device_and_inode() {
        let (_reader, stderr) = UnixStream::pair().expect("socket pair");
        let is = rustix::fs::fstat(&stderr).expect("fstat");
        assert!(is_stream(&format!("{}:{}", is.st_dev, is.st_ino), &stderr));
        for other in [format!("{}:{}", is.st_dev, is.st_ino + 1), format!("{}:{}", is.st_dev + 1, is.st_ino)] {
            assert!(!is_stream(&other, &stderr), "{other}");
        }
        for nonsense in ["", ":", "8:", "a:b", "8:-1", "8"] {
            assert!(!is_stream(nonsense, &stderr), "{nonsense}");
        }
    }
}
