//! Checks whether an echo server, any echo server, does what RFC 862 and TCP promise.
//!
//!     cargo run --example conformance -- 127.0.0.1:9999               # all questions that any server can be asked
//!     cargo run --example conformance -- 127.0.0.1:9999 binary reset  # these two
//!     cargo run --example conformance -- --spawn 'target/debug/echod --listen 127.0.0.1:{port}'
//!
//! Prints one line per question, with the reason if the answer is wrong. Exit status: 0 if every
//! answer is right, 1 if one is wrong, 2 if the command line is wrong.
//!
//! With `--spawn`, a server is started for each question and killed after it. It has to print
//! `listening on tcp://ADDRESS` first. That allows more questions: under limits, at signals, and
//! with the server stopped while something arrives.

#[path = "conformance/peer.rs"]
mod peer;
#[path = "conformance/questions.rs"]
mod questions;
#[path = "conformance/server.rs"]
mod server;

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroU8;
use std::process::ExitCode;
use std::time::Duration;

use peer::{Outcome, Peer, set_timeout};
use questions::{Ask, QUESTIONS, Question, Target};
use server::Launcher;

/// Which server is asked.
enum Subject {
    Running(SocketAddr),
    Spawned(Launcher),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        print(&usage());
        return ExitCode::SUCCESS;
    }
    let (subject, questions) = match command_line(arguments) {
        Ok(parsed) => parsed,
        Err(problem) => {
            print(&format!("conformance: {problem}\n\n{}", usage()));
            return ExitCode::from(2);
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for Question { name, expected, ask } in questions {
        match subject.ask(ask) {
            Ok(()) => {
                passed += 1;
                print(&format!("ok      {name}: {expected}"));
            }
            Err(got) => {
                failed += 1;
                print(&format!("FAILED  {name}: {expected}. Got: {got}"));
            }
        }
        if let Subject::Running(address) = subject
            && let Err(got) = Peer::connect(address)
        {
            print(&format!("ended   after {name}, no server listens on {address} any more: {got}"));
            failed = failed.max(1);
            break;
        }
    }
    print(&format!("{passed} passed, {failed} failed"));
    ExitCode::from(u8::from(failed > 0))
}

impl Subject {
    fn ask(&self, ask: &Ask) -> Outcome {
        match (self, ask) {
            (Subject::Running(address), Ask::Any(ask)) => ask_any(*ask, &Target { address: *address, server: None }),
            (Subject::Spawned(launcher), Ask::Any(ask)) => {
                let server = launcher.start()?;
                ask_any(*ask, &Target { address: server.address, server: Some(&server) })
            }
            (Subject::Spawned(launcher), Ask::Spawned(ask)) => ask(launcher),
            (Subject::Running(_), Ask::Spawned(_)) => Err("this question needs --spawn".into()),
        }
    }
}

/// Asks, and then checks that the server still serves another peer, whatever the question has done
/// to it.
fn ask_any(ask: fn(&Target) -> Outcome, target: &Target) -> Outcome {
    ask(target)?;
    let next = Peer::connect(target.address).and_then(|mut peer| peer.hello());
    next.map_err(|got| format!("that, but then the next peer was not served: {got}"))
}

fn command_line(arguments: Vec<String>) -> Result<(Subject, Vec<&'static Question>), String> {
    let mut arguments = arguments.into_iter();
    let mut subject = None;
    let mut names = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--spawn" => {
                let command = arguments.next().ok_or("--spawn needs a command")?;
                subject = Some(Subject::Spawned(Launcher { command }));
            }
            "--timeout" => {
                let seconds = arguments.next().unwrap_or_default();
                let seconds: NonZeroU8 =
                    seconds.parse().map_err(|_| format!("--timeout needs seconds from 1 to 255, not {seconds:?}"))?;
                set_timeout(Duration::from_secs(seconds.get().into()));
            }
            address if subject.is_none() => {
                let resolved = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
                subject = Some(Subject::Running(resolved.ok_or_else(|| format!("{address:?} is not HOST:PORT"))?));
            }
            _ => names.push(argument),
        }
    }
    let subject = subject.ok_or("which server?")?;
    if let Some(name) = names.iter().find(|name| QUESTIONS.iter().all(|question| question.name != **name)) {
        return Err(format!("unknown question {name:?}"));
    }
    let possible = |question: &Question| matches!(subject, Subject::Spawned(_)) || matches!(question.ask, Ask::Any(_));
    let (asked, left_out): (Vec<_>, Vec<_>) = QUESTIONS
        .iter()
        .filter(|question| names.is_empty() || names.iter().any(|name| name == question.name))
        .partition(|question| possible(question));
    match left_out.first() {
        Some(question) if !names.is_empty() => Err(format!("{} needs --spawn", question.name)),
        _ => Ok((subject, asked)),
    }
}

fn usage() -> String {
    let mut usage = String::from(
        "usage: conformance [--timeout SECONDS] HOST:PORT [QUESTION]...\n       \
         conformance [--timeout SECONDS] --spawn 'COMMAND {port}' [QUESTION]...\n\n\
         --timeout    how long the server may keep a peer waiting [default: 2]\n\nquestions:",
    );
    for Question { name, expected, ask } in &QUESTIONS {
        let note = if matches!(ask, Ask::Spawned(_)) { " [needs --spawn]" } else { "" };
        usage += &format!("\n  {name:13} {expected}{note}");
    }
    usage
}

fn print(line: &str) {
    // If the reader of stdout has gone away, there is nothing left to report to.
    let _ = writeln!(io::stdout(), "{line}");
}
