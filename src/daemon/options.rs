//! The command line. Reads no environment, performs no I/O and logs nothing.
//!
//! [`Options::parse`] returns either options whose values are all valid, or an [`EarlyExit`]: what to print, where, and the exit
//! status.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueHint};
use log::LevelFilter;

use crate::daemon::early_exit::EarlyExit;
use crate::daemon::values::{parse_count, parse_duration, parser};
use crate::listen::address::Address;
use crate::listen::socket::ListenOptions;

/// The address to listen on if `--listen` is not given.
const DEFAULT_ADDRESS: Address = Address::Port(9999);

/// The maximum timeout, 24 days. The loop counts milliseconds in a u32, which wraps after 49 days, and only times that differ by
/// less than half of that can be compared.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 24 * 60 * 60);

/// The maximum time of busy polling. Polling pays for gaps of microseconds; a longer time would waste a core by mistake.
const MAX_BUSY_POLL: Duration = Duration::from_millis(10);

/// The maximum buffer size, 16 MiB. A stalled connection may hold that much, and a buffer larger than the kernel's is never full.
const MAX_BUFFER_SIZE: u32 = 16 << 20;

/// The size of the read buffer, and the most that is read from TCP at a time, unless `--buffer-size` sets both.
///
/// Measured with 64 KiB, 128 KiB, 256 KiB and 1 MiB: 64 KiB are best on TCP (beside 64 and 300 bulk streams, a larger buffer
/// moves 0.69 to 0.78 as much per CPU second), and 128 KiB on Unix sockets (1 MiB messages: 1.6 times as many per second as with
/// 64 KiB).
const DEFAULT_BUFFER_SIZE: usize = 128 * 1024;
const DEFAULT_MAX_TCP_READ: usize = 64 * 1024;

/// The maximum of `--max-buffered`, 1 TiB (2 GiB on 32-bit targets): a larger number is a mistake rather than the memory of a
/// machine.
const MAX_MAX_BUFFERED: usize = if usize::BITS > 40 { 1 << 40 } else { 1 << 31 };

/// The maximum of `--socket-buffer`. Linux doubles the value to account for its own overhead and keeps it in an int: socket(7).
const MAX_SOCKET_BUFFER: u32 = i32::MAX as u32 / 2;

/// The options that the user has given, with every value within its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The addresses to listen on: never empty, because the default applies if none was given.
    pub listen: Vec<Address>,
    /// Whether `--listen` was given. Only then is `listen` bound in addition to sockets passed by a service manager.
    pub listen_given: bool,
    /// Echo one message, then close first.
    pub one_shot: bool,
    /// The connection limit; `None` for as many as the descriptors allow.
    pub max_connections: Option<u32>,
    /// How long a connection may be idle; `None` for any time.
    pub idle_timeout: Option<Duration>,
    /// How long a graceful shutdown waits for peers; zero does not wait.
    pub drain_timeout: Duration,
    /// The size of the shared read buffer in bytes.
    pub buffer_size: usize,
    /// The maximum of bytes per read from TCP.
    pub max_tcp_read: usize,
    /// The maximum of unsent data of all connections together, in bytes.
    pub max_buffered: usize,
    /// SO_SNDBUF and SO_RCVBUF of each TCP connection in bytes; `None` leaves them to the kernel.
    pub socket_buffer: Option<u32>,
    /// The backlog of each listener: listen(2).
    pub backlog: u32,
    /// Whether to set SO_REUSEPORT.
    pub reuse_port: bool,
    /// How long to keep polling after the last event before blocking; zero blocks at once.
    pub busy_poll: Duration,
    /// The address of the metrics endpoint: a port or an IP address with a port.
    pub metrics: Option<Address>,
    /// Whether to print a sequence diagram of each connection to stdout.
    pub explain: bool,
    /// Check the echo server at this address instead of serving.
    pub check: Option<Address>,
    /// The log level, unless RUST_LOG overrides it.
    pub level: LevelFilter,
}

impl Options {
    /// Parses the arguments, of which the first is the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Options, EarlyExit> {
        let given = command().try_get_matches_from(args).and_then(|matches| Arguments::from_arg_matches(&matches));
        given.map(Options::from).map_err(|error| EarlyExit::from_clap(&error))
    }

    /// Returns the options for creating listening sockets.
    pub fn listen_options(&self) -> ListenOptions {
        ListenOptions { backlog: self.backlog, reuse_port: self.reuse_port, socket_buffer: self.socket_buffer }
    }
}

impl From<Arguments> for Options {
    fn from(given: Arguments) -> Options {
        Options {
            listen_given: !given.listen.is_empty(),
            listen: if given.listen.is_empty() { vec![DEFAULT_ADDRESS] } else { given.listen },
            one_shot: given.one_shot,
            max_connections: given.max_connections,
            idle_timeout: Some(given.idle_timeout).filter(|timeout| !timeout.is_zero()),
            drain_timeout: given.drain_timeout,
            buffer_size: given.buffer_size.map_or(DEFAULT_BUFFER_SIZE, |bytes| bytes as usize),
            max_tcp_read: given.buffer_size.map_or(DEFAULT_MAX_TCP_READ, |bytes| bytes as usize),
            max_buffered: given.max_buffered,
            socket_buffer: given.socket_buffer,
            backlog: given.backlog,
            reuse_port: given.reuse_port,
            busy_poll: given.busy_poll,
            metrics: given.metrics,
            explain: given.explain,
            check: given.check,
            level: match (given.quiet, given.verbose) {
                (true, _) => LevelFilter::Warn,
                (false, 0) => LevelFilter::Info,
                (false, 1) => LevelFilter::Debug,
                (false, _) => LevelFilter::Trace,
            },
        }
    }
}

/// Returns the definition of the command line, from which the help, the manual page and the completions are generated.
pub fn command() -> clap::Command {
    // No value is the name of a file, which shells would otherwise offer.
    Arguments::command().mut_args(|option| match option.get_action() {
        ArgAction::Set | ArgAction::Append => option.value_hint(ValueHint::Other),
        _ => option,
    })
}

/// The options that mean something only to a daemon that serves, and so not with `--check`.
const SERVING_OPTIONS: [&str; 13] = [
    "listen",
    "one_shot",
    "max_connections",
    "idle_timeout",
    "drain_timeout",
    "buffer_size",
    "max_buffered",
    "socket_buffer",
    "backlog",
    "reuse_port",
    "busy_poll",
    "metrics",
    "explain",
];

// The width is fixed, so that the help is the same everywhere and the README can contain it. Values may begin with a hyphen:
// all such values are invalid, but the message then names the option and the value, whereas clap would report "-1s" as an
// unknown option.
#[derive(Parser)]
#[command(name = "echod", bin_name = "echod", version, term_width = 100, color = clap::ColorChoice::Never)]
#[command(about = "A TCP echo server (RFC 862)", after_help = AFTER_HELP)]
struct Arguments {
    /// Listen on ADDRESS; may be given more than once [default: 9999]
    #[arg(short, long, value_name = "ADDRESS", value_parser = parser(Address::parse), allow_hyphen_values = true)]
    listen: Vec<Address>,

    /// Echo one message of at most 1024 bytes, then close first
    #[arg(long)]
    one_shot: bool,

    /// Limit simultaneous connections [default: by RLIMIT_NOFILE]
    #[arg(long, value_name = "N", value_parser = parser(|n| parse_count(n, u32::MAX)), allow_hyphen_values = true)]
    max_connections: Option<u32>,

    /// Close connections idle for this long; 0 disables
    #[arg(long, value_name = "DURATION", default_value = "10m", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|text| parse_duration(text, MAX_TIMEOUT, "24 days")))]
    idle_timeout: Duration,

    /// On shutdown, wait this long for peers to close
    #[arg(long, value_name = "DURATION", default_value = "5s", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|text| parse_duration(text, MAX_TIMEOUT, "24 days")))]
    drain_timeout: Duration,

    /// Limit reads and unsent data per peer [default: 65536; Unix 131072]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|bytes| parse_count(bytes, MAX_BUFFER_SIZE)))]
    buffer_size: Option<u32>,

    /// Limit the unsent data of all connections
    #[arg(long, value_name = "BYTES", default_value = "67108864", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|bytes| parse_count(bytes, MAX_MAX_BUFFERED)))]
    max_buffered: usize,

    /// Fix the kernel's socket buffers [default: kernel autotuning]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|bytes| parse_count(bytes, MAX_SOCKET_BUFFER)))]
    socket_buffer: Option<u32>,

    /// Set the length of the listen backlog
    #[arg(long, value_name = "N", default_value = "1024", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|n| parse_count(n, i32::MAX as u32)))]
    backlog: u32,

    /// Share the port with other processes (SO_REUSEPORT)
    #[arg(long)]
    reuse_port: bool,

    /// Poll this long before blocking if it pays
    #[arg(long, value_name = "DURATION", default_value = "50us", allow_hyphen_values = true)]
    #[arg(value_parser = parser(|text| parse_duration(text, MAX_BUSY_POLL, "10ms")))]
    busy_poll: Duration,

    /// Serve Prometheus metrics and /healthz over HTTP
    #[arg(long, value_name = "ADDRESS", value_parser = parser(parse_metrics_address), allow_hyphen_values = true)]
    metrics: Option<Address>,

    /// Print a live TCP sequence diagram of each connection to stdout
    #[arg(long)]
    explain: bool,

    /// Test the echo server at ADDRESS instead of serving, and exit
    #[arg(long, value_name = "ADDRESS", value_parser = parser(Address::parse), allow_hyphen_values = true)]
    #[arg(conflicts_with_all = SERVING_OPTIONS)]
    check: Option<Address>,

    /// Log each connection; -vv: also each readiness event
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,

    /// Log only warnings and errors
    #[arg(short, conflicts_with = "verbose")]
    quiet: bool,
}

const AFTER_HELP: &str = "\
ADDRESS:   PORT (all interfaces), IP:PORT, [IPv6]:PORT, HOST:PORT, unix:PATH or unix:@NAME.
           Port 0 picks a free port, reported by the \"listening on ...\" line on stdout.
           --metrics accepts PORT and IP:PORT only; for --check, PORT means localhost
DURATION:  a whole number with a unit (50us, 500ms, 30s, 10m, 1h), or 0
RUST_LOG:  overrides -v and -q (e.g. RUST_LOG=echod=debug)";

/// Parses the address of the metrics endpoint. A name is not accepted: it can stand for several addresses, and the endpoint has
/// one listener.
fn parse_metrics_address(text: &str) -> Result<Address, String> {
    match Address::parse(text) {
        Ok(address @ (Address::Port(_) | Address::Ip(_))) => Ok(address),
        _ => Err("expected PORT or IP:PORT, e.g. 127.0.0.1:9100".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn parse(args: &[&str]) -> Result<Options, EarlyExit> {
        Options::parse(["echod"].iter().chain(args).map(OsString::from))
    }

    fn options(args: &[&str]) -> Options {
        parse(args).unwrap_or_else(|exit| panic!("{args:?}: {}", exit.message))
    }

    fn refused(args: &[&str]) -> String {
        let exit = parse(args).expect_err(&format!("{args:?}"));
        assert_eq!((exit.status, exit.to_stdout), (2, false), "{args:?}");
        assert!(!exit.message.contains(char::is_control), "{args:?}: {:?}", exit.message);
        exit.message
    }

    #[test]
    fn command_definition_passes_clap_checks() {
        command().debug_assert();
    }

    #[test]
    fn option_help_is_short_and_starts_with_a_capital() {
        for option in command().get_arguments() {
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.len() <= 70 && !help.ends_with('.'), "{}: {help}", option.get_id());
            assert!(help.starts_with(|c: char| c.is_ascii_uppercase()), "{}: {help}", option.get_id());
        }
    }

    #[test]
    fn defaults_match_the_contract() {
        let defaults = Options {
            listen: vec![Address::Port(9999)],
            listen_given: false,
            one_shot: false,
            max_connections: None,
            idle_timeout: Some(Duration::from_secs(600)),
            drain_timeout: Duration::from_secs(5),
            buffer_size: 131_072,
            max_tcp_read: 65536,
            max_buffered: 64 << 20,
            socket_buffer: None,
            backlog: 1024,
            reuse_port: false,
            busy_poll: Duration::from_micros(50),
            metrics: None,
            explain: false,
            check: None,
            level: LevelFilter::Info,
        };
        assert_eq!(options(&[]), defaults);
        assert_eq!(options(&["-l", "9999"]), Options { listen_given: true, ..defaults });
    }

    #[test]
    fn every_option_sets_its_field() {
        let all = options(&[
            "-l=127.0.0.1:0",
            "--listen",
            "unix:/run/x",
            "--one-shot",
            "--max-connections=7",
            "--idle-timeout=0",
            "--drain-timeout",
            "0s",
            "--buffer-size=1",
            "--max-buffered=1099511627776",
            "--socket-buffer",
            "4096",
            "--backlog=2147483647",
            "--reuse-port",
            "--busy-poll=40us",
            "--metrics=[::1]:9100",
            "--explain",
            "-vv",
        ]);
        let expected = Options {
            listen: vec![Address::Ip(([127, 0, 0, 1], 0).into()), Address::Unix("/run/x".into())],
            listen_given: true,
            one_shot: true,
            max_connections: Some(7),
            idle_timeout: None,
            drain_timeout: Duration::ZERO,
            buffer_size: 1,
            max_tcp_read: 1,
            max_buffered: 1 << 40,
            socket_buffer: Some(4096),
            backlog: i32::MAX as u32,
            reuse_port: true,
            busy_poll: Duration::from_micros(40),
            metrics: Some(Address::Ip("[::1]:9100".parse().expect("address"))),
            explain: true,
            check: None,
            level: LevelFilter::Trace,
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn metrics_port_means_all_interfaces() {
        assert_eq!(options(&["--metrics", "9100"]).metrics, Some(Address::Port(9100)));
    }

    #[test]
    fn check_conflicts_with_every_option_for_serving() {
        assert_eq!(options(&["--check", "9999"]).check, Some(Address::Port(9999)));
        assert_eq!(options(&["--check", "9999", "-q"]).check, Some(Address::Port(9999)));
        let expected = "echod: --check and --listen cannot be used together";
        assert_eq!(refused(&["--check=9999", "--listen=9999"]), expected);
        let command = command();
        let ids = command.get_arguments().map(|option| option.get_id().as_str());
        let others: Vec<&str> =
            ids.filter(|id| !["check", "verbose", "quiet", "help", "version"].contains(id)).collect();
        assert_eq!(others, SERVING_OPTIONS, "a new option should be in the list");
    }

    #[test]
    fn v_and_q_select_the_log_level() {
        for (flags, level) in [
            (&["-q"][..], LevelFilter::Warn),
            (&["-v"], LevelFilter::Debug),
            (&["-vv"], LevelFilter::Trace),
            (&["-v", "-v"], LevelFilter::Trace),
            (&["-vvv"], LevelFilter::Trace),
        ] {
            assert_eq!(options(flags).level, level, "{flags:?}");
        }
    }

    #[test]
    fn invalid_value_error_names_option_and_value() {
        let address = |text: &str| Address::parse(text).expect_err("should be rejected");
        let number = |max: u32| format!("expected a whole number from 1 to {max}");
        let duration = "expected a whole number with a unit (us, ms, s, m, h), e.g. 30s";
        let metrics = "expected PORT or IP:PORT, e.g. 127.0.0.1:9100";
        for (option, value, why) in [
            ("--listen", "localhost", address("localhost").as_str()),
            ("--listen", "70000", &address("70000")),
            ("--listen", "", &address("")),
            ("--listen", "--one-shot", &address("--one-shot")),
            ("--max-connections", "0", &number(u32::MAX)),
            ("--max-connections", "+5", &number(u32::MAX)),
            ("--max-connections", "-5", &number(u32::MAX)),
            ("--idle-timeout", "5", "missing unit, e.g. 5s (us, ms, s, m, h)"),
            ("--idle-timeout", "1.5s", duration),
            ("--idle-timeout", "-1s", duration),
            ("--idle-timeout", "inf", duration),
            ("--idle-timeout", "", duration),
            ("--idle-timeout", "25000h", "must be at most 24 days"),
            ("--drain-timeout", "577h", "must be at most 24 days"),
            ("--buffer-size", "64k", &number(16 << 20)),
            ("--buffer-size", "0", &number(16 << 20)),
            ("--buffer-size", "16777217", &number(16 << 20)),
            ("--backlog", "0", &number(i32::MAX as u32)),
            ("--backlog", "2147483648", &number(i32::MAX as u32)),
            ("--busy-poll", "11ms", "must be at most 10ms"),
            ("--metrics", "localhost:80", metrics),
            ("--metrics", "70000", metrics),
            ("--metrics", "unix:/run/metrics", metrics),
            ("--max-buffered", "0", "expected a whole number from 1 to 1099511627776"),
            ("--max-buffered", "1099511627777", "expected a whole number from 1 to 1099511627776"),
            ("--max-buffered", "64M", "expected a whole number from 1 to 1099511627776"),
            ("--socket-buffer", "0", &number(i32::MAX as u32 / 2)),
            ("--socket-buffer", "1073741824", &number(i32::MAX as u32 / 2)),
            ("--check", "localhost", &address("localhost")),
        ] {
            let expected = format!("echod: invalid value '{value}' for {option}: {why}");
            assert_eq!(refused(&[option, value]), expected);
            assert_eq!(refused(&[&format!("{option}={value}")]), expected);
        }
    }

    #[test]
    fn overlong_unix_path_is_an_invalid_value() {
        let path = format!("unix:/{}", "x".repeat(200));
        let why = Address::parse(&path).expect_err("should be rejected");
        assert_eq!(refused(&["-l", &path]), format!("echod: invalid value '{path}' for --listen: {why}"));
    }

    #[test]
    fn unknown_option_error_is_one_line() {
        for (args, expected) in [
            (&["--listne", "9999"][..], "echod: unknown option '--listne'; did you mean --listen?"),
            (&["--frobnicate"], "echod: unknown option '--frobnicate'; see echod --help"),
            (&["-x"], "echod: unknown option '-x'; see echod --help"),
            (&["9999"], "echod: unknown argument '9999'; see echod --help"),
            (&[""], "echod: unknown argument ''; see echod --help"),
            (&["--listen"], "echod: --listen requires a value"),
            (&["--one-shot=yes"], "echod: --one-shot does not take a value (got 'yes')"),
            (&["--backlog=1", "--backlog=2"], "echod: --backlog may only be given once"),
            (&["-v", "-q"], "echod: -v and -q cannot be used together"),
            (&["-qvv"], "echod: -q and -v cannot be used together"),
        ] {
            assert_eq!(refused(args), expected, "{args:?}");
        }
    }

    #[test]
    fn control_characters_are_escaped_in_errors() {
        assert_eq!(refused(&["--x\ny\x1b[31m"]), "echod: unknown option '--x\\ny\\u{1b}[31m'; see echod --help");
        assert!(refused(&["--listen=a\nb:1"]).contains("'a\\nb:1'"));
        let not_utf8 = OsString::from_vec(b"--listen=unix:/\xff".to_vec());
        let exit = Options::parse(["echod".into(), not_utf8]).expect_err("should be rejected");
        assert_eq!(exit.message, "echod: invalid value 'unix:/\u{fffd}' for --listen: not valid UTF-8");
        let not_utf8 = OsString::from_vec(b"--\xff\n".to_vec());
        let exit = Options::parse(["echod".into(), not_utf8]).expect_err("should be rejected");
        assert_eq!((exit.status, exit.message.lines().count()), (2, 1), "{}", exit.message);
    }

    #[test]
    fn help_and_version_are_plain_text_on_stdout() {
        let version = parse(&["-V"]).expect_err("version");
        assert_eq!(version.message, concat!("echod ", env!("CARGO_PKG_VERSION")));
        let help = parse(&["--help"]).expect_err("help");
        assert_eq!(parse(&["-h"]).expect_err("help"), help);
        let elsewhere = Options::parse(["/opt/bin/other".into(), "-h".into()]).expect_err("help");
        assert_eq!(elsewhere, help, "the help should not depend on the name of the program");
        assert_eq!((help.status, help.to_stdout, version.status, version.to_stdout), (0, true, 0, true));
        for line in help.message.lines() {
            assert!(line.chars().count() <= 100 && line.is_ascii() && !line.contains('\x1b'), "{line}");
        }
    }
}
