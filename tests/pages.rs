//! Runs the pages in `src/docs`: every command in them, and compares its output with what the page shows.
//!
//! A block ```` ```console ```` holds commands after `$ ` and their output; a line that ends in `\` continues on the next
//! one. If the output begins with `listening on`, the command is a server, which keeps running; a block ```` ```text ````
//! then is what it prints next. A line `…` stands for any number of lines, and at the end of a line for its rest.
//! `<!-- Ctrl-C -->` stops the server. Ports from 9990 to 9999 are replaced by free ones; times, ports and all other numbers
//! of five or more digits are not compared.

mod support;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, kill_process};
use support::{Signal, eventually, has_program, skip_missing, wait_until};

const ENGLISH: &str = "src/docs/tutorial.md";
const CHINESE: &str = "src/docs/tutorial.zh.md";
const TOUR: &str = "src/docs/tour.md";

/// What a page consists of, as far as it can be run.
#[derive(Debug, PartialEq)]
enum Part {
    /// A command and its output.
    Command(String, Vec<String>),
    /// What the server prints next.
    Prints(Vec<String>),
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
            parts.push(Part::Prints(block));
            continue;
        }
        for line in block {
            match (line.strip_prefix("$ "), parts.last_mut()) {
                (Some(command), _) => parts.push(Part::Command(command.into(), Vec::new())),
                (None, Some(Part::Command(command, output))) if output.is_empty() && command.ends_with('\\') => {
                    *command += &format!("\n{line}");
                }
                (None, Some(Part::Command(_, output))) => output.push(line),
                (None, _) => panic!("a console block begins with output: {line}"),
            }
        }
    }
    parts
}

/// Returns the line without what differs from run to run.
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

/// Returns how many of these lines the page shows, or `None` if it shows something else.
fn matches(shown: &[String], lines: &[String]) -> Option<usize> {
    match shown.split_first() {
        None => Some(0),
        Some((line, rest)) if line == "…" => {
            (0..=lines.len()).find_map(|skipped| Some(skipped + matches(rest, &lines[skipped..])?))
        }
        Some((line, rest)) => {
            let (first, others) = lines.split_first()?;
            let same = match masked(line).strip_suffix('…') {
                Some(beginning) => masked(first).starts_with(beginning.trim_end()),
                None => masked(line) == masked(first),
            };
            same.then(|| matches(rest, others))?.map(|taken| taken + 1)
        }
    }
}

/// A server of the page. Killed and reaped when dropped.
struct Server {
    child: Child,
    printed: Arc<Mutex<String>>,
    /// How many of its lines the page has shown.
    shown: usize,
}

impl Server {
    /// Waits until the server has printed this. Only whole lines count.
    fn expect(&mut self, page: &Page, shown: &[String]) {
        let printed = || -> Vec<String> {
            let text = self.printed.lock().expect("no panic in the reader").clone();
            let end = text.rfind('\n').map_or(0, |end| end + 1);
            text[..end].lines().skip(self.shown).map(|line| page.shown(line)).collect()
        };
        let start = std::time::Instant::now();
        loop {
            let printed = printed();
            if let Some(taken) = matches(shown, &printed) {
                self.shown += taken;
                return;
            }
            let late = start.elapsed().as_secs() >= 10;
            assert!(
                !late,
                "{}: the page shows\n\n{}\n\nbut the server printed\n\n{}\n",
                page.name,
                shown.join("\n"),
                printed.join("\n")
            );
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn has_exited(&mut self) -> bool {
        self.child.try_wait().expect("status of the server").is_some()
    }

    /// Sends SIGINT, unless the server has ended by itself, and waits for its end.
    fn ctrl_c(&mut self) {
        if !self.has_exited() {
            kill_process(Pid::from_child(&self.child), Signal::INT).expect("running server");
            wait_until("the server to end after Ctrl-C", || self.has_exited());
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
                Part::Prints(lines) => {
                    // Without a server, the block is an illustration.
                    if let Some(mut server) = page.server.take() {
                        server.expect(&page, &lines);
                        page.server = Some(server);
                    }
                }
                // The server's output has been compared; what follows is the next server's.
                Part::CtrlC => page.server.take().expect("a server that runs").ctrl_c(),
            }
        }
    }

    /// Returns the command as it is run here: with our ports, and the programs that Cargo has built.
    fn shell(&self, command: &str) -> Command {
        let mut line = command.replace("cargo run -q --example conformance --", "conformance");
        line = line.replace(" nc ", &format!(" {} ", openbsd_nc().expect("checked before")));
        for digit in 0..10 {
            line = line.replace(&format!("999{digit}"), &(self.ports + digit).to_string());
        }
        let test = std::env::current_exe().expect("path of the test");
        let built = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{}:{path}", built.display(), built.join("examples").display()));
        shell.env("PYTHONUNBUFFERED", "1").env_remove("RUST_LOG");
        shell
    }

    /// Returns a printed line with the ports of the page.
    fn shown(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for digit in 0..10 {
            line = line.replace(&(self.ports + digit).to_string(), &format!("999{digit}"));
        }
        line
    }

    fn serve(&mut self, command: &str, output: &[String]) {
        let runs = self.server.as_mut().is_some_and(|server| !server.has_exited());
        assert!(!runs, "{}: the page should have the reader stop the server first: {command}", self.name);
        let mut shell = self.shell(&format!("exec {command} 2>&1"));
        let mut child = shell.stdout(Stdio::piped()).spawn().expect("sh");
        let (mut pipe, printed) = (child.stdout.take().expect("stdout of sh"), Arc::new(Mutex::new(String::new())));
        let collected = Arc::clone(&printed);
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..count]);
                *collected.lock().expect("no panic in the page") = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        let mut server = Server { child, printed, shown: 0 };
        server.expect(self, output);
        self.server = Some(server);
    }

    fn command(&self, command: &str, output: &[String]) {
        let mut child = self.shell(&format!("exec 2>&1; {command}")).stdout(Stdio::piped()).spawn().expect("sh");
        let mut pipe = child.stdout.take().expect("stdout of sh");
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| bytes)
        });
        wait_until(command, || child.try_wait().expect("status of the command").is_some());
        let bytes = reader.join().expect("no panic in the reader").expect("output of the command");
        let lines: Vec<String> = String::from_utf8_lossy(&bytes).lines().map(|line| self.shown(line)).collect();
        let all = matches(output, &lines) == Some(lines.len()) || output.last().is_some_and(|last| last == "…");
        assert!(
            all,
            "{}: {command}\n\nthe page shows\n\n{}\n\nbut the output is\n\n{}\n",
            self.name,
            output.join("\n"),
            lines.join("\n")
        );
    }
}

/// Returns the first of ten free ports in a row, below those that the system assigns to clients.
fn free_ports() -> u16 {
    let mut random = support::Random::new(
        u64::from(std::process::id()) << 32 | rustix::thread::gettid().as_raw_nonzero().get() as u64,
    );
    eventually("ten free ports", || {
        let base = random.between(1000, 3000) as u16 * 10;
        (base..base + 10).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()).then_some(base)
    })
}

/// Returns the name of OpenBSD's netcat; `nc` may be another one.
fn openbsd_nc() -> Option<&'static str> {
    ["nc.openbsd", "nc"].into_iter().find(|name| {
        let help = Command::new(name).arg("-h").output();
        help.is_ok_and(|help| String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("OpenBSD"))
    })
}

/// Returns whether a page that needs these programs can be run here; otherwise prints what is missing.
fn can_run(programs: &[&'static str]) -> bool {
    let missing = programs.iter().copied().find(|program| !has_program(program));
    match missing.or_else(|| openbsd_nc().is_none().then_some("OpenBSD's nc")) {
        Some(missing) => skip_missing(missing),
        None => return true,
    }
    false
}

#[test]
fn english_tutorial_output_is_reproduced() {
    if can_run(&["ss", "python3"]) {
        Page::run(ENGLISH);
    }
}

#[test]
fn chinese_tutorial_output_is_reproduced() {
    if can_run(&["ss", "python3"]) {
        Page::run(CHINESE);
    }
}

#[test]
fn tour_output_is_reproduced() {
    if can_run(&["strace"]) {
        Page::run(TOUR);
    }
}

#[test]
fn both_languages_show_the_same_commands_and_output() {
    let parts = |page: &str| parts(&fs::read_to_string(page).expect("page"));
    let (english, chinese) = (parts(ENGLISH), parts(CHINESE));
    for (english, chinese) in english.iter().zip(&chinese) {
        assert_eq!(english, chinese);
    }
    assert_eq!(english.len(), chinese.len());
    assert!(english.len() > 20, "only {} parts", english.len());
}

/// The Chinese page translates the English words of `--explain` in a table.
#[test]
fn words_in_the_chinese_gloss_occur_in_the_output() {
    let page = fs::read_to_string(CHINESE).expect("page");
    let printed: String = parts(&page).iter().map(|part| format!("{part:?}")).collect();
    let rows: Vec<&str> = page.lines().skip_while(|line| !line.starts_with("| 输出 |")).skip(2).collect();
    let rows: Vec<&str> = rows.into_iter().take_while(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 5, "found only {} rows", rows.len());
    for words in rows.iter().filter_map(|row| row.split(" | ").next()).flat_map(|cell| cell[2..].split(" / ")) {
        assert!(printed.contains(words), "--explain does not print this any more: {words}");
    }
}

// ---- the comparison itself ----

#[test]
fn masks_hide_only_times_and_long_numbers() {
    assert_eq!(masked("#1      0.000185  ── PSH+ACK len 3"), "#1 TIME ── PSH+ACK len 3");
    assert_eq!(masked("client 127.0.0.1:48786, 1024 bytes"), "client 127.0.0.1:NUMBER, 1024 bytes");
}

#[test]
fn ellipsis_matches_lines_or_the_rest_of_one() {
    let lines = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    assert_eq!(matches(&lines("a,…,d"), &lines("a,b,c,d,e")), Some(4));
    assert_eq!(matches(&lines("a,c"), &lines("a,b,c")), None);
    assert_eq!(matches(&lines("a,b"), &lines("a")), None);
    assert_eq!(matches(&lines("a b …,c"), &lines("a b 1 2,c")), Some(2));
    assert_eq!(matches(&lines("f(7…"), &lines("f(7 8)")), Some(1));
    assert_eq!(matches(&lines("a c …"), &lines("a b c")), None);
}

#[test]
fn command_may_continue_on_the_next_line() {
    let command = |text: &str, output: &[&str]| Part::Command(text.into(), output.iter().map(|&o| o.into()).collect());
    let page = "```console\n$ one & \\\n  two\noutput \\\nmore\n$ three\n```\n<!-- Ctrl-C -->\n```text\nprinted\n```\n";
    let expected = [
        command("one & \\\n  two", &["output \\", "more"]),
        command("three", &[]),
        Part::CtrlC,
        Part::Prints(vec!["printed".into()]),
    ];
    assert_eq!(parts(page), expected);
}
