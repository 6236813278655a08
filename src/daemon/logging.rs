//! The log: levels, RUST_LOG, and what the journal wants.

use std::env;
use std::io::{self, IsTerminal, Write};

use env_logger::WriteStyle;
use log::LevelFilter;

use crate::daemon::journal;
use crate::daemon::output::{open_stderr, print_stderr, write_to_stderr};

/// stderr for a logger, which must hand over each record with a single write.
fn stderr_log_writer() -> impl Write + Send + 'static {
    struct LogWriter;

    impl Write for LogWriter {
        fn write(&mut self, record: &[u8]) -> io::Result<usize> {
            write_to_stderr(record);
            Ok(record.len()) // Dropped or not: the logger has nobody to tell.
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    LogWriter
}

/// Starts the log: to stderr, from `level` on, unless RUST_LOG says otherwise. `level` is for our own
/// modules; of other crates (mio has much to say at `trace`) only warnings are wanted.
pub fn init_log(level: LevelFilter) {
    // Opened now: at the first line there may be no descriptor left for it, and that is what the line says.
    open_stderr();
    let mut builder = env_logger::Builder::new();
    let rules = env::var_os("RUST_LOG").unwrap_or_default();
    let rules = rules.to_string_lossy();
    // Tried before env_logger reads it: that one would complain with `eprintln!`, which can wait and panic.
    match env_filter::Builder::new().try_parse(&rules) {
        Ok(_) if !rules.trim().is_empty() => builder.parse_filters(&rules),
        parsed => {
            if let Err(error) = parsed {
                print_stderr(format_args!("echod: RUST_LOG is ignored: {error}"));
            }
            builder.filter_level(level.min(LevelFilter::Warn)).filter_module("echod", level)
        }
    };
    // env_logger takes a pipe of ours for no terminal, so the question is asked here (https://no-color.org).
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    builder
        .target(env_logger::Target::Pipe(Box::new(stderr_log_writer())))
        .write_style(if color { WriteStyle::Always } else { WriteStyle::Never })
        .format_timestamp_millis() // In UTC.
        .format_target(false);
    if journal::is_stderr() {
        // The journal has its own timestamps, and knows levels by a prefix that it takes off: sd-daemon(3).
        builder.format(|out, record| writeln!(out, "{}{}", journal::level_prefix(record.level()), record.args()));
    }
    // It fails only where a logger is set already, and then that one logs.
    let _ = builder.try_init();
}
