//! Property tests of the command line: any text is either accepted or rejected with a one-line message.
//!
//! proptest generates the texts: pieces of valid ones, concatenated, cut and changed, and sometimes random characters. A
//! failing text is reduced to a minimal one. (A fuzzer that is guided by coverage needs a nightly compiler.)
//!
//!     ECHOD_TEXTS=10000000 cargo test --release --test parsers
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "support/property.rs"]
mod property;

use std::cell::Cell;
use std::ffi::OsString;
use std::iter;
use std::time::Duration;

use echod::daemon::options::Options;
use echod::listen::address::Address;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const PIECES: [&str; 50] = [
    "127.0.0.1",
    "0.0.0.0",
    "[::1]",
    "[::]",
    "::1",
    "::",
    "fe80::1%lo",
    "[fe80::1%lo]",
    "localhost",
    "example.org",
    "unix:",
    "/run/echo.sock",
    "@",
    "0x7f",
    "tcp://",
    ":",
    "::",
    "[",
    "]",
    "%",
    "9999",
    "0",
    "65535",
    "65536",
    "70000",
    "+80",
    "-1",
    "1.5",
    "1e3",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "us",
    "ms",
    "s",
    "m",
    "h",
    "d",
    "inf",
    "NaN",
    " ",
    "\t",
    "\n",
    "\u{1b}[31m",
    "\u{7f}",
    "ä",
    "例",
    "\u{202e}",
    ".",
    "/",
    "=",
];

/// The pieces of durations. From the pieces above, only one text in five hundred is a valid duration.
const NUMBERS_AND_UNITS: [&str; 12] =
    ["0", "1", "007", "576", "18446744073709551616", "us", "ms", "s", "m", "h", "d", "."];

fn texts(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    // Which characters are kept. Reducing a failing text starts here, by dropping every character that it does not need.
    let kept = vec(prop::bool::weighted(0.99), 64);
    // Characters that are replaced or doubled.
    let changes = vec((any::<Index>(), prop::option::of(prop::char::range('\0', '\u{2ff}'))), 0..2);
    let concatenated = (kept, changes, vec(select(pieces), 0..6)).prop_map(|(kept, changes, pieces)| {
        let kept = kept.into_iter().chain(iter::repeat(true));
        let mut text: Vec<char> = pieces.iter().flat_map(|piece| piece.chars()).collect();
        if !text.is_empty() {
            for (index, change) in changes {
                let index = index.index(text.len());
                match change {
                    Some(other) => text[index] = other,
                    None => text.insert(index, text[index]),
                }
            }
        }
        text.into_iter().zip(kept).filter_map(|(character, is_kept)| is_kept.then_some(character)).collect()
    });
    prop_oneof![9 => concatenated, 1 => vec(any::<char>(), 0..8).prop_map(String::from_iter)]
}

/// Generates inputs and passes each to `check`, which returns whether it was accepted. The number of inputs is divided by
/// `divisor`, because clap is slow without optimization.
fn for_each<T: std::fmt::Debug>(divisor: u32, inputs: impl Strategy<Value = T>, check: impl Fn(&T) -> bool) {
    let count = std::env::var("ECHOD_TEXTS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000) / divisor;
    let accepted = Cell::new(0);
    property::for_each(count, &inputs, |input| accepted.update(|accepted| accepted + u32::from(check(input))));
    let accepted = accepted.get();
    assert!(
        accepted > count / 500 && accepted < count,
        "{accepted} of {count} texts accepted: too few or too many to prove anything"
    );
}

fn assert_one_printable_line(message: &str) {
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
}

#[test]
fn addresses_round_trip_or_fail_in_one_line() {
    for_each(1, texts(&PIECES), |text| match Address::parse(text) {
        Err(message) => {
            assert_one_printable_line(&message);
            false
        }
        Ok(address) => {
            let shown = address.to_string();
            assert_eq!(Address::parse(&shown), Ok(address), "displayed as {shown:?}");
            true
        }
    });
}

/// Parses a duration as the contract defines it, independently of the parser under test.
fn expected(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &text[digits.len()..];
    if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let micros = match unit {
        "us" => 1_u64,
        "ms" => 1000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "" if digits.chars().all(|c| c == '0') => 0,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    let duration = Duration::from_micros(number.checked_mul(micros)?);
    (duration <= Duration::from_secs(24 * 24 * 3600)).then_some(duration)
}

#[test]
fn duration_parses_exactly_as_documented() {
    for_each(20, prop_oneof![texts(&PIECES), texts(&NUMBERS_AND_UNITS)], |text| {
        let arguments = ["echod".into(), OsString::from(format!("--idle-timeout={text}"))];
        match Options::parse(arguments) {
            Ok(options) => {
                assert!(expected(text).is_some(), "accepted: {:?}", options.idle_timeout);
                assert_eq!(options.idle_timeout, expected(text).filter(|time| !time.is_zero()));
                true
            }
            Err(exit) => {
                assert_eq!((exit.status, exit.to_stdout), (2, false));
                assert_one_printable_line(&exit.message);
                assert!(exit.message.contains("--idle-timeout"), "{}", exit.message);
                assert_eq!(expected(text), None, "rejected: {}", exit.message);
                false
            }
        }
    });
}

#[test]
fn command_line_parses_or_fails_in_one_line() {
    const OPTIONS: &[&str] = &["--listen", "-l", "--listen", "--metrics", "--backlog", "--drain-timeout"];
    const FLAGS: &[&str] = &["--one-shot", "--reuse-port", "-v", "--explain"];
    let lines = (prop::option::of(select(FLAGS)), select(OPTIONS), texts(&PIECES));
    for_each(20, lines, |(flag, option, text)| {
        let text = text.replace('\0', "0");
        let arguments = ["echod"].into_iter().chain(*flag).chain([*option, &text]).map(OsString::from);
        match Options::parse(arguments) {
            Ok(_) => true,
            Err(exit) => {
                assert_eq!(exit.status, 2);
                assert_one_printable_line(&exit.message);
                false
            }
        }
    });
}
