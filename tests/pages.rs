//! The pages under `src/` are run: every command in them, and its output compared with what the page shows.
//!
//! A block ```` ```console ```` holds commands after `$ ` and what they print. If that begins with `listening on`, the
//! command is a server, and stays; a block ```` ```text ```` then is what it says next. A line `…` stands for any number of
//! lines, and at the end of one for its rest. `<!-- Ctrl-C -->` is what it says, to the server. Ports from 9990 to 9999 become free ones; times, ports and
//! whatever else has five digits or more are not compared.

mod support;

#[path = "support/sources.rs"]
mod sources;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, kill_process};
use sources::{read, sources_in};
use support::{Signal, eventually, has_program, skip_missing, wait_until};

const ENGLISH: &str = "src/docs/tutorial.md";
const CHINESE: &str = "src/docs/tutorial.zh.md";

/// What a page consists of, as far as it can be run.
#[derive(Debug, PartialEq)]
enum Part {
    /// A command and what it prints.
    Command(String, Vec<String>),
    /// What the server says next.
    Says(Vec<String>),
    CtrlC,
}

fn parts(page: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let block: Vec<String> = match line {
            "```console" | "```text" => lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect(),
            "<!-- Ctrl-C -->" => {
                parts.push(Part::CtrlC);
                continue;
            }
            _ => continue,
        };
        if line == "```text" {
            parts.push(Part::Says(block));
            continue;
        }
        for line in block {
            match (line.strip_prefix("$ "), parts.last_mut()) {
                (Some(command), _) => parts.push(Part::Command(command.into(), Vec::new())),
                (None, Some(Part::Command(_, output))) => output.push(line),
                (None, _) => panic!("a console block begins with output: {line}"),
            }
        }
    }
    parts
}

/// The line without what differs from run to run.
fn masked(line: &str) -> String {
    let mut masked = String::new();
    let mut rest = line.trim_end();
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let (digits, after) = number.split_at(end);
        masked += before;
        // A time has six decimals.
        let decimals = after.strip_prefix('.').map_or(0, |after| after.bytes().take_while(u8::is_ascii_digit).count());
        if decimals == 6 {
            masked += "TIME";
            rest = &after[7..];
        } else {
            masked += if digits.len() >= 5 { "NUMBER" } else { digits };
            rest = after;
        }
    }
    masked += rest;
    // Columns are as wide as the ports in them.
    masked.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether these lines are what the page shows. Returns how many of them that takes.
fn matches(shown: &[String], lines: &[String]) -> Option<usize> {
    match shown.split_first() {
        None => Some(0),
        Some((line, rest)) if line == "…" => {
            (0..=lines.len()).find_map(|skipped| Some(skipped + matches(rest, &lines[skipped..])?))
        }
        Some((line, rest)) => {
            let (first, others) = lines.split_first()?;
            let same = match masked(line).strip_suffix(" …") {
                Some(beginning) => masked(first).starts_with(beginning),
                None => masked(line) == masked(first),
            };
            same.then(|| matches(rest, others))?.map(|taken| taken + 1)
        }
    }
}

/// A server of the page. Killed and reaped when dropped.
struct Server {
    child: Child,
    said: Arc<Mutex<String>>,
    /// How many of its lines the page has shown.
    shown: usize,
}

impl Server {
    /// Waits until it has said this, whole lines only.
    fn expect(&mut self, page: &Page, shown: &[String]) {
        let said = || -> Vec<String> {
            let text = self.said.lock().expect("no panic").clone();
            let end = text.rfind('\n').map_or(0, |end| end + 1);
            text[..end].lines().skip(self.shown).map(|line| page.shown(line)).collect()
        };
        let start = std::time::Instant::now();
        loop {
            let said = said();
            if let Some(taken) = matches(shown, &said) {
                self.shown += taken;
                return;
            }
            let late = start.elapsed().as_secs() >= 10;
            assert!(
                !late,
                "{}: the page shows\n\n{}\n\nbut this was said\n\n{}\n",
                page.name,
                shown.join("\n"),
                said.join("\n")
            );
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn stop(&mut self) {
        if self.child.try_wait().expect("a child").is_none() {
            kill_process(Pid::from_child(&self.child), Signal::INT).expect("it runs");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page that is being run.
struct Page {
    name: &'static str,
    /// The port that stands for 9990.
    ports: u16,
    server: Option<Server>,
}

impl Page {
    fn run(name: &'static str) {
        let text = fs::read_to_string(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut page = Page { name, ports: free_ports(), server: None };
        for part in parts(&text) {
            match part {
                Part::Command(command, output)
                    if output.first().is_some_and(|line| line.starts_with("listening on")) =>
                {
                    page.serve(&command, &output);
                }
                Part::Command(command, output) => page.command(&command, &output),
                Part::Says(lines) => {
                    let mut server = page.server.take().expect("a server");
                    server.expect(&page, &lines);
                    page.server = Some(server);
                }
                Part::CtrlC => page.server.as_mut().expect("a server").stop(),
            }
        }
    }

    /// The command as it is run here: our ports, and the programs that Cargo has built.
    fn shell(&self, command: &str) -> Command {
        let mut line = command.replace("cargo run -q --example conformance --", "conformance");
        line = line.replace(" nc ", &format!(" {} ", openbsd_nc().expect("asked before")));
        for digit in 0..10 {
            line = line.replace(&format!("999{digit}"), &(self.ports + digit).to_string());
        }
        let test = std::env::current_exe().expect("a path");
        let built = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{}:{path}", built.display(), built.join("examples").display()));
        shell.env("PYTHONUNBUFFERED", "1").env_remove("RUST_LOG");
        shell
    }

    /// What was printed, with the page's ports.
    fn shown(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for digit in 0..10 {
            line = line.replace(&(self.ports + digit).to_string(), &format!("999{digit}"));
        }
        line
    }

    fn serve(&mut self, command: &str, output: &[String]) {
        self.server = None; // The one before has gone before this one comes.
        let mut shell = self.shell(&format!("exec {command} 2>&1"));
        let mut child = shell.stdout(Stdio::piped()).spawn().expect("sh");
        let (mut pipe, said) = (child.stdout.take().expect("a pipe"), Arc::new(Mutex::new(String::new())));
        let collected = Arc::clone(&said);
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..count]);
                *collected.lock().expect("no panic") = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        let mut server = Server { child, said, shown: 0 };
        server.expect(self, output);
        self.server = Some(server);
    }

    fn command(&self, command: &str, output: &[String]) {
        let mut child = self.shell(&format!("exec 2>&1; {command}")).stdout(Stdio::piped()).spawn().expect("sh");
        wait_until(command, || child.try_wait().expect("a child").is_some());
        let mut text = Vec::new();
        child.stdout.take().expect("a pipe").read_to_end(&mut text).expect("text");
        let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(|line| self.shown(line)).collect();
        let all = matches(output, &lines) == Some(lines.len()) || output.last().is_some_and(|last| last == "…");
        assert!(
            all,
            "{}: {command}\n\nthe page shows\n\n{}\n\nbut this came\n\n{}\n",
            self.name,
            output.join("\n"),
            lines.join("\n")
        );
    }
}

/// Ten ports in a row, below those that the system gives to clients.
fn free_ports() -> u16 {
    let mut random = support::Random::new(
        u64::from(std::process::id()) << 32 | rustix::thread::gettid().as_raw_nonzero().get() as u64,
    );
    eventually("ten free ports", || {
        let base = random.between(1000, 3000) as u16 * 10;
        (base..base + 10).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()).then_some(base)
    })
}

/// OpenBSD's netcat, by the name that it has here. Another one may stand behind `nc`.
fn openbsd_nc() -> Option<&'static str> {
    ["nc.openbsd", "nc"].into_iter().find(|name| {
        let help = Command::new(name).arg("-h").output();
        help.is_ok_and(|help| String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("OpenBSD"))
    })
}

/// Whether the pages can be run here.
fn can_run() -> bool {
    let missing = ["ss", "python3"].into_iter().find(|program| !has_program(program));
    match missing.or_else(|| openbsd_nc().is_none().then_some("OpenBSD's nc")) {
        Some(missing) => skip_missing(missing),
        None => return true,
    }
    false
}

#[test]
fn the_tutorial_shows_what_happens() {
    if can_run() {
        Page::run(ENGLISH);
    }
}

#[test]
fn the_chinese_tutorial_shows_what_happens() {
    if can_run() {
        Page::run(CHINESE);
    }
}

#[test]
fn both_languages_have_the_same_commands() {
    let commands = |page: &str| -> Vec<String> {
        let page = fs::read_to_string(page).expect("a page");
        let command = |part| if let Part::Command(command, _) = part { Some(command) } else { None };
        parts(&page).into_iter().filter_map(command).collect()
    };
    assert_eq!(commands(ENGLISH), commands(CHINESE));
    assert!(commands(ENGLISH).len() > 5);
}

/// Whether this source defines it: a function, a type, a constant, or a variant of an enum.
fn defines(source: &str, name: &str) -> bool {
    let name = name.rsplit("::").next().expect("a name");
    source.lines().map(str::trim_start).any(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let item = ["fn ", "const ", "struct ", "enum ", "trait "].iter().find_map(|word| line.strip_prefix(word));
        let rest = item.unwrap_or(line).strip_prefix(name);
        // A variant stands alone on its line.
        rest.is_some_and(|rest| match item {
            Some(_) => !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'),
            None => rest == "," || rest == " {" || rest.ends_with("),"),
        })
    })
}

/// What stands in backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn what_the_pages_name_in_the_code_is_there() {
    let all: String = sources_in("src").into_iter().map(read).collect();
    for page in [ENGLISH, CHINESE, "src/docs/tour.md"] {
        let text = read(page).replace("\n> ", " ");
        let mut named = 0;
        // After a quoted file, what is in it. In the last column of a table of the tutorial, something anywhere.
        for quote in text.lines().filter(|line| line.contains(".rs`][") && spans(line).count() > 1) {
            let mut source = None;
            for span in spans(quote) {
                if span.ends_with(".rs") {
                    source = Some(read(span));
                } else {
                    let there = source.as_ref().is_some_and(|source| defines(source, span));
                    assert!(there, "{page} names `{span}`, which is not there: {quote}");
                    named += 1;
                }
            }
        }
        for row in text.lines().filter(|line| line.starts_with("| ") && page != "src/docs/tour.md") {
            for span in row.rsplit(" | ").next().map(spans).into_iter().flatten() {
                assert!(defines(&all, span), "{page} names `{span}`, which is not there: {row}");
                named += 1;
            }
        }
        assert!(named > 5, "{page} names next to nothing");
    }
    assert!(!defines("    pub fn works() {}", "work") && defines("    pub fn work<T>() {}", "Connection::work"));
}

#[test]
fn masks_hide_times_and_long_numbers_and_nothing_else() {
    assert_eq!(masked("#1      0.000185  ── PSH+ACK len 3"), "#1 TIME ── PSH+ACK len 3");
    assert_eq!(masked("client 127.0.0.1:48786, 1024 bytes"), "client 127.0.0.1:NUMBER, 1024 bytes");
    let lines = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
    assert_eq!(matches(&lines("a … d"), &lines("a b c d e")), Some(4));
    assert_eq!(matches(&lines("a c"), &lines("a b c")), None);
    assert_eq!(matches(&lines("a b"), &lines("a")), None);
}
