//! Sets up the log: the level, RUST_LOG, colors and the format for the journal.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::{env, fmt};

use env_logger::{Builder, Logger, Target, WriteStyle};
use log::{Level, LevelFilter, Log, Record, warn};

use crate::daemon::journal;
use crate::daemon::output::{open_stderr, print_stderr, write_to_stderr};
use crate::listen::address::printable;

/// The same log without a level, for lines that are printed on request.
static UNFILTERED: OnceLock<Logger> = OnceLock::new();

/// Starts logging to stderr at `level`, unless RUST_LOG overrides it. `level` applies to our own modules; other crates log
/// warnings only (mio logs a lot at `trace`). A RUST_LOG that cannot be parsed is ignored with a warning.
pub fn init_log(level: LevelFilter) {
    // Opened now, because the first line may be the one that reports descriptor exhaustion.
    open_stderr();
    let _ = UNFILTERED.set(builder().filter_level(LevelFilter::Trace).build());
    let rules = env::var_os("RUST_LOG").unwrap_or_default();
    let rules = rules.to_string_lossy();
    let valid = validate(&rules);
    let mut builder = builder();
    if valid.is_ok() && !rules.trim().is_empty() {
        builder.parse_filters(&rules);
    } else {
        builder.filter_level(level.min(LevelFilter::Warn)).filter_module("echod", level);
    }
    // Fails only if another logger is already set, which then does the logging.
    let _ = builder.try_init();
    if let Err(why) = valid {
        warn!("ignoring invalid RUST_LOG: {}", printable(&why));
    }
}

/// Logs a line whatever the level, in the same format as all others.
pub fn log_always(level: Level, line: fmt::Arguments) {
    match UNFILTERED.get() {
        Some(logger) => logger.log(&Record::builder().level(level).target("echod").args(line).build()),
        None => print_stderr(line),
    }
}

/// Checks RUST_LOG. The error is a clause that says what is wrong.
///
/// env_logger would report an error with `eprintln!`, which can block and panic. And it takes everything that is not a level for
/// the name of a module: with `[` or `echod =debug`, which name none, it would log nothing at all, not even errors.
fn validate(rules: &str) -> Result<(), String> {
    env_filter::Builder::new().try_parse(rules).map_err(|error| error.to_string())?;
    let directives = rules.split('/').next().unwrap_or_default().split(',').map(str::trim);
    for directive in directives.filter(|directive| !directive.is_empty()) {
        let name = directive.split('=').next().unwrap_or_default();
        // As in Rust's paths, and in the names of packages.
        if !name.chars().all(|c| c.is_alphanumeric() || "_:-.".contains(c)) {
            return Err(format!("'{name}' is neither a level nor a module"));
        }
    }
    Ok(())
}

/// Returns a builder with everything but the levels.
fn builder() -> Builder {
    let mut builder = Builder::new();
    // env_logger cannot detect a terminal behind a writer of ours, so it is detected here (https://no-color.org).
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    builder
        .target(Target::Pipe(Box::new(StderrLog)))
        .write_style(if color { WriteStyle::Always } else { WriteStyle::Never })
        .format_timestamp_millis() // In UTC.
        .format_target(false);
    if journal::is_stderr() {
        // The journal has its own timestamps and strips a prefix that gives the priority: sd-daemon(3).
        builder.format(|out, record| writeln!(out, "{}{}", journal::level_prefix(record.level()), record.args()));
    }
    builder
}

/// Writes to stderr for env_logger, which passes each record with a single call of `write`.
struct StderrLog;

impl Write for StderrLog {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        write_to_stderr(record);
        Ok(record.len()) // Dropped or not, there is nothing the logger could do about it.
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_rust_log_is_accepted() {
        for rules in
            ["", " ", "off", "debug", "INFO", "echod", "echod=debug", "echod::event_loop=trace,mio=warn", "a-b=warn"]
        {
            assert_eq!(validate(rules), Ok(()), "{rules:?}");
        }
        assert_eq!(validate("echod=debug, warn ,"), Ok(()));
        assert_eq!(validate("info/[text]"), Ok(()), "what follows the slash is a pattern");
    }

    #[test]
    fn rust_log_without_a_module_name_is_rejected() {
        for rules in ["[", "echod =debug", "info,[", "echod[span]=debug", "\u{fffd}", "de bug", "{}"] {
            let why = validate(rules).expect_err(rules);
            assert!(why.ends_with("' is neither a level nor a module"), "{rules:?}: {why}");
        }
        for rules in ["echod=loud", "a=b=c", "a/b/c"] {
            assert!(validate(rules).is_err(), "{rules:?}");
        }
    }
}
