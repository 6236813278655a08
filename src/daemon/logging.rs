//! Sets up the log: the level, RUST_LOG, colors and the format for the journal.

use std::env;
use std::io::{self, IsTerminal, Write};

use env_logger::WriteStyle;
use log::LevelFilter;

use crate::daemon::journal;
use crate::daemon::output::{open_stderr, print_stderr, write_to_stderr};

/// Returns a writer to stderr for env_logger, which passes each record with a single call of `write`.
fn stderr_log_writer() -> impl Write + Send + 'static {
    struct LogWriter;

    impl Write for LogWriter {
        fn write(&mut self, record: &[u8]) -> io::Result<usize> {
            write_to_stderr(record);
            Ok(record.len()) // Dropped or not, there is nothing the logger could do about it.
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    LogWriter
}

/// Starts logging to stderr at `level`, unless RUST_LOG overrides it. `level` applies to our own modules; other crates log
/// warnings only (mio logs a lot at `trace`).
pub fn init_log(level: LevelFilter) {
    // Opened now, because the first line may be the one that reports descriptor exhaustion.
    open_stderr();
    let mut builder = env_logger::Builder::new();
    let rules = env::var_os("RUST_LOG").unwrap_or_default();
    let rules = rules.to_string_lossy();
    // Parsed before env_logger does, which would report an error with `eprintln!`, and that can block and panic.
    match env_filter::Builder::new().try_parse(&rules) {
        Ok(_) if !rules.trim().is_empty() => builder.parse_filters(&rules),
        parsed => {
            if let Err(error) = parsed {
                print_stderr(format_args!("echod: ignoring invalid RUST_LOG: {error}"));
            }
            builder.filter_level(level.min(LevelFilter::Warn)).filter_module("echod", level)
        }
    };
    // env_logger cannot detect a terminal behind a writer of ours, so it is detected here (https://no-color.org).
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    builder
        .target(env_logger::Target::Pipe(Box::new(stderr_log_writer())))
        .write_style(if color { WriteStyle::Always } else { WriteStyle::Never })
        .format_timestamp_millis() // In UTC.
        .format_target(false);
    if journal::is_stderr() {
        // The journal has its own timestamps and strips a prefix that gives the priority: sd-daemon(3).
        builder.format(|out, record| writeln!(out, "{}{}", journal::level_prefix(record.level()), record.args()));
    }
    // Fails only if another logger is already set, which then does the logging.
    let _ = builder.try_init();
}
