//! What a person may type, a hundred thousand times: whatever it is, the command line takes it or refuses it in one line.
//!
//! Texts are drawn from a seed: pieces of what is right, glued, cut and changed. (Seeded like the simulation, so that a
//! failure repeats with the numbers it prints; a fuzzer that looks at coverage needs a nightly compiler.)
//!
//!     ECHOD_TEXTS=10000000 cargo test --release --test parsers
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stderr, reason = "the text that failed belongs on the terminal")]

use std::ffi::OsString;
use std::time::Duration;

use echod::listener::Address;
use echod::options::Options;
use fastrand::Rng;

const PIECES: [&str; 48] = [
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

fn draw(rng: &mut Rng) -> String {
    let mut text: String = (0..rng.usize(0..6)).map(|_| PIECES[rng.usize(..PIECES.len())]).collect();
    // Some characters lost, changed, doubled.
    for _ in 0..rng.usize(0..3) {
        let mut characters: Vec<char> = text.chars().collect();
        if characters.is_empty() {
            break;
        }
        let place = rng.usize(..characters.len());
        match rng.u32(..3) {
            0 => drop(characters.remove(place)),
            1 => characters[place] = rng.char('\0'..='\u{2ff}'),
            _ => characters.insert(place, characters[place]),
        }
        text = characters.into_iter().collect();
    }
    text
}

/// Draws texts and has each looked at, which says whether it was taken; a panic is preceded by the text that did it.
/// Clap takes a while without optimisation: hence the share.
fn for_each_text(share: u64, look: impl Fn(&str) -> bool + std::panic::RefUnwindSafe) {
    let texts = std::env::var("ECHOD_TEXTS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000) / share;
    let mut taken = 0;
    for seed in 0..texts {
        let text = draw(&mut Rng::with_seed(seed));
        match std::panic::catch_unwind(|| look(&text)) {
            Ok(is_taken) => taken += u64::from(is_taken),
            Err(panic) => {
                eprintln!("text {seed}: {text:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(taken > texts / 500 && taken < texts, "{taken} of {texts} texts were taken: that proves nothing");
}

fn assert_one_printable_line(message: &str) {
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
}

#[test]
fn an_address_is_refused_in_one_line_or_shown_as_it_can_be_read_again() {
    for_each_text(1, |text| match Address::parse(text) {
        Err(message) => {
            assert_one_printable_line(&message);
            false
        }
        Ok(address) => {
            let shown = address.to_string();
            assert_eq!(Address::parse(&shown), Ok(address), "shown as {shown:?}");
            true
        }
    });
}

/// A duration as the contract has it, by another way than the parser's.
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
fn a_duration_is_what_the_contract_says_and_nothing_else_is() {
    for_each_text(20, |text| {
        let arguments = ["echod".into(), OsString::from(format!("--idle-timeout={text}"))];
        match Options::parse(arguments) {
            Ok(options) => {
                assert!(expected(text).is_some(), "taken: {:?}", options.idle_timeout);
                assert_eq!(options.idle_timeout, expected(text).filter(|time| !time.is_zero()));
                true
            }
            Err(exit) => {
                assert_eq!((exit.status, exit.to_stdout), (2, false));
                assert_one_printable_line(&exit.message);
                assert!(exit.message.contains("--idle-timeout"), "{}", exit.message);
                assert_eq!(expected(text), None, "refused: {}", exit.message);
                false
            }
        }
    });
}

#[test]
fn whatever_stands_on_the_command_line_is_taken_or_refused_in_one_line() {
    let options = ["--listen", "-l", "--listen", "--metrics", "--backlog", "--drain-timeout"];
    let flags = ["--one-shot", "--reuse-port", "-v", "--explain"];
    for_each_text(20, |text| {
        let mut rng = Rng::with_seed(text.bytes().map(u64::from).sum());
        let mut arguments: Vec<OsString> = vec!["echod".into()];
        if rng.bool() {
            arguments.push(flags[rng.usize(..flags.len())].into());
        }
        arguments.push(options[rng.usize(..options.len())].into());
        arguments.push(text.replace('\0', "0").into());
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
