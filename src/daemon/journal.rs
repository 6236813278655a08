//! The journal: whether stderr is connected to it, and its level prefixes.

use std::os::fd::AsFd;
use std::{env, io};

use log::Level;

/// Whether stderr goes to the journal: systemd says so in JOURNAL_STREAM, which names the socket by device and inode. The
/// variable alone proves nothing, since it is inherited by those whose stderr goes elsewhere: systemd.exec(5).
pub fn is_stderr() -> bool {
    env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, io::stderr()))
}

fn is_stream(stream: &str, descriptor: impl AsFd) -> bool {
    let Ok(is) = rustix::fs::fstat(descriptor) else { return false };
    stream
        .split_once(':')
        .is_some_and(|(device, inode)| device.parse() == Ok(is.st_dev) && inode.parse() == Ok(is.st_ino))
}

/// syslog(3) has one level below `info`.
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
        let (_reader, stderr) = UnixStream::pair().expect("a pair");
        let is = rustix::fs::fstat(&stderr).expect("a socket");
        assert!(is_stream(&format!("{}:{}", is.st_dev, is.st_ino), &stderr));
        for other in [format!("{}:{}", is.st_dev, is.st_ino + 1), format!("{}:{}", is.st_dev + 1, is.st_ino)] {
            assert!(!is_stream(&other, &stderr), "{other}");
        }
        for nonsense in ["", ":", "8:", "a:b", "8:-1", "8"] {
            assert!(!is_stream(nonsense, &stderr), "{nonsense}");
        }
    }
}
