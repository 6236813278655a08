//! Asks every rung of `examples/ladder` every question of the conformance client, and compares the
//! answers with the table in `examples/ladder/README.md`, in both directions: a rung that passes
//! what it should fail is a failure too.
//!
//!     cargo test --test ladder -- --ignored --nocapture    # makes the changes to rung 6 that the tour proposes

#![allow(clippy::print_stdout, reason = "the long test reports its progress")]

#[path = "support/example.rs"]
mod example;
mod support;
#[path = "support/tree_copy.rs"]
mod tree_copy;

use std::collections::VecDeque;
use std::fs;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::thread;

use example::example;
use tree_copy::TreeCopy;

const ENGLISH: &str = "examples/ladder/README.md";
const CHINESE: &str = "examples/ladder/README.zh.md";
const TOUR: &str = "src/docs/tour.md";
const RUNG_6: &str = "examples/ladder/6_ready_queue.rs";

/// Seconds that a server may keep a peer waiting. A wrong answer often takes as long; a right one
/// takes longer only on a machine that is busy with something else.
const TIMEOUT: &str = "6";

/// How many questions are asked at the same time. Most of them wait, and those that work share the
/// processors.
const PARALLEL: usize = 16;

/// How often a rung that should fail is asked until it does. Some faults are races: rung 4 loses an edge only if bytes arrive at a
/// bad moment (T4), and passed 2 of 12 times here. A rung that should pass is asked once; there, one failure is a fault.
const MAX_TRIES: usize = 6;

/// A row of the table.
#[derive(Debug, PartialEq)]
struct Row {
    question: String,
    expected: String,
    /// Whether the rungs from 0 to 7 pass.
    passes: Vec<bool>,
}

/// Returns the rows of a page's table: `` | `question` | what is expected | ✓ | ✗ | ... | ``.
fn table(page: &str) -> Vec<Row> {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.trim_end_matches('|').split('|').map(str::trim);
        let question = cells.next()?.trim_end_matches('`').to_owned();
        let expected = cells.next()?.to_owned();
        let mark = |mark| match mark {
            "✓" => true,
            "✗" => false,
            other => panic!("{page}: {question}: {other:?} is neither ✓ nor ✗"),
        };
        let passes = cells.map(mark).collect();
        Some(Row { question, expected, passes })
    };
    text.lines().filter_map(row).collect()
}

fn conformance(arguments: &[&str]) -> Output {
    Command::new(example("conformance")).args(arguments).output().expect("conformance should start")
}

/// Returns the command that starts a rung for this question.
fn command(rung: usize, question: &str) -> String {
    let program = match rung {
        0 => return "python3 examples/ten_lines.py {port}".into(),
        1 => "1_blocking",
        2 => "2_threads",
        3 => "3_readiness",
        4 => "4_drain_the_edge",
        5 => "5_state_machine",
        6 => "6_ready_queue",
        7 => {
            let idle_timeout = if question == "idle" { "1s" } else { "1m" };
            let echod = env!("CARGO_BIN_EXE_echod");
            return format!("'{echod}' -q --listen 127.0.0.1:{{port}} --idle-timeout {idle_timeout}");
        }
        _ => panic!("no such rung: {rung}"),
    };
    format!("'{}' 127.0.0.1:{{port}}", example(program).display())
}

/// Returns what differs from the table, if anything.
fn difference(rung: usize, row: &Row) -> Option<String> {
    let tries = if row.passes[rung] { 1 } else { MAX_TRIES };
    let mut difference = None;
    for _ in 0..tries {
        difference = Some(ask(rung, row)?);
    }
    difference
}

/// Asks one question and returns what differs from the table, if anything.
fn ask(rung: usize, row: &Row) -> Option<String> {
    let question = row.question.as_str();
    let output = conformance(&["--timeout", TIMEOUT, "--spawn", &command(rung, question), question]);
    let report = String::from_utf8_lossy(&output.stdout);
    let passes = match output.status.code() {
        Some(0) => true,
        Some(1) => false,
        status => panic!("conformance ended with {status:?}: {report}{}", String::from_utf8_lossy(&output.stderr)),
    };
    let first = report.lines().next().unwrap_or_default();
    assert_eq!(first.starts_with("ok      "), passes, "{report}");
    assert!(!first.contains("Got: the server does not start"), "no answer to compare: {report}");
    let expected = row.passes[rung];
    (passes != expected).then(|| format!("rung {rung} should {} {first}", if expected { "pass:" } else { "fail:" }))
}

#[test]
fn every_rung_passes_and_fails_as_the_table_says() {
    let rows = table(ENGLISH);
    assert!(rows.iter().all(|row| row.passes.len() == 8), "a table with 8 rungs: {rows:#?}");
    let python = support::has_program("python3");
    if !python {
        support::skip_missing("python3");
    }
    let cells = (usize::from(!python)..8).flat_map(|rung| rows.iter().map(move |row| (rung, row)));
    // `fair` counts on buffers of many MiB in the kernel, so it is asked alone.
    let (alone, rest): (Vec<_>, Vec<_>) = cells.partition(|(_, row)| row.question == "fair");
    let mut differences: Vec<String> = alone.into_iter().filter_map(|(rung, row)| difference(rung, row)).collect();
    let queue: Mutex<VecDeque<_>> = Mutex::new(rest.into());
    let next = || queue.lock().expect("no other thread should panic").pop_front();
    differences.extend(thread::scope(|scope| {
        let work = || std::iter::from_fn(next).filter_map(|(rung, row)| difference(rung, row)).collect::<Vec<_>>();
        let workers: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(work)).collect();
        let join = workers.into_iter().map(|worker| worker.join().expect("every question should get an answer"));
        join.flatten().collect::<Vec<_>>()
    }));
    assert!(differences.is_empty(), "{} differs from {ENGLISH}:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn neighboring_rungs_differ_in_the_table() {
    let rows = table(ENGLISH);
    for rung in 0..7 {
        let fixed = rows.iter().any(|row| !row.passes[rung] && row.passes[rung + 1]);
        assert!(fixed, "rung {} answers no question that rung {rung} does not", rung + 1);
    }
    assert!(rows.iter().all(|row| row.passes[7]), "the daemon passes every question");
}

#[test]
fn table_has_the_questions_of_the_client() {
    let usage = conformance(&["--help"]);
    assert_eq!(usage.status.code(), Some(0));
    let usage = String::from_utf8(usage.stdout).expect("usage should be text");
    let questions = usage.split_once("questions:\n").expect("usage should list the questions").1;
    let of_client = questions.lines().map(|line| {
        let (name, expected) = line.trim().split_once(' ').expect("a name and what is expected");
        (name.to_owned(), expected.trim().trim_end_matches(" [needs --spawn]").to_owned())
    });
    let of_table = table(ENGLISH).into_iter().map(|row| (row.question, row.expected));
    assert_eq!(of_table.collect::<Vec<_>>(), of_client.collect::<Vec<_>>());
}

#[test]
fn chinese_table_has_the_same_marks() {
    let marks = |page| table(page).into_iter().map(|row| (row.question, row.passes)).collect::<Vec<_>>();
    assert_eq!(marks(ENGLISH), marks(CHINESE));
}

/// Returns the number, the idea and what is still broken of each rung, without the links.
fn rungs(page: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
    let rows = text.lines().skip_while(|line| !line.starts_with("| rung |"));
    let cells = |row: &str| {
        let cells = row.trim_matches('|').split('|').map(|cell| cell.trim().replace(['[', ']'], ""));
        cells.collect::<Vec<_>>()
    };
    rows.skip(2).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn tour_and_readme_describe_the_same_rungs() {
    let mut ours = rungs(ENGLISH);
    ours.iter_mut().for_each(|row| drop(row.remove(1))); // the file
    assert_eq!(ours.len(), 8);
    assert_eq!(ours, rungs(TOUR));
}

// ---- the changes to rung 6 that the tour proposes ----

/// A row of the table in the tour: a change to rung 6, and the questions that the rung then fails.
#[derive(Debug)]
struct Change {
    original: String,
    replacement: String,
    fails: Vec<String>,
    /// The questions that it fails in some runs only.
    may_fail: Vec<String>,
}

fn changes() -> Vec<Change> {
    let page = fs::read_to_string(TOUR).expect("the tour");
    let spans =
        |cell: &str| cell.split('`').skip(1).step_by(2).map(|span| span.replace("\\|", "|")).collect::<Vec<_>>();
    let rows = page.lines().skip_while(|line| !line.starts_with("| in `6_ready_queue.rs`, ")).skip(2);
    let change = |row: &str| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [original, replacement, questions, _why] = cells[..] else { panic!("four cells: {row}") };
        let (always, sometimes) = questions.split_once("in some runs").unwrap_or((questions, ""));
        let only = |cell| spans(cell).pop().unwrap_or_else(|| panic!("code: {row}"));
        Change {
            original: only(original),
            replacement: only(replacement),
            fails: spans(always),
            may_fail: spans(sometimes),
        }
    };
    rows.take_while(|line| line.starts_with("| ")).map(change).collect()
}

/// Returns the questions that rung 6 passes without a change.
fn passed_by_rung_6() -> Vec<String> {
    table(ENGLISH).into_iter().filter(|row| row.passes[6]).map(|row| row.question).collect()
}

#[test]
fn changes_to_rung_6_are_possible() {
    let source = fs::read_to_string(RUNG_6).expect("the source of rung 6");
    let passed = passed_by_rung_6();
    let changes = changes();
    assert!(changes.len() > 4, "only {} changes: has the format of the table changed?", changes.len());
    for change in changes {
        assert_eq!(source.matches(&change.original).count(), 1, "{RUNG_6} should have this once: {}", change.original);
        assert!(!change.fails.is_empty(), "{change:?}");
        let unknown = change.fails.iter().chain(&change.may_fail).find(|question| !passed.contains(question));
        assert_eq!(unknown, None, "rung 6 does not pass this without the change: {change:?}");
    }
}

#[test]
#[ignore = "builds the rung once per change: three minutes"]
fn changes_to_rung_6_fail_the_named_questions() {
    let copy = TreeCopy::new();
    let source = fs::read_to_string(RUNG_6).expect("the source of rung 6");
    let mut wrong = Vec::new();
    for change in changes() {
        let changed = source.replacen(&change.original, &change.replacement, 1);
        fs::write(copy.path(RUNG_6), changed).expect("write the changed rung");
        let built = copy.shell("timeout 600 cargo build --offline --target-dir target --example 6_ready_queue");
        assert!(built.status.success(), "{change:?}: {}", String::from_utf8_lossy(&built.stdout));
        let rung = copy.path("target/debug/examples/6_ready_queue");
        let command = format!("'{}' 127.0.0.1:{{port}}", rung.display());
        let mut failed = passed_by_rung_6();
        failed.retain(|question| {
            conformance(&["--timeout", TIMEOUT, "--spawn", &command, question]).status.code() != Some(0)
        });
        println!("{}: fails {failed:?}", change.original);
        failed.retain(|question| !change.may_fail.contains(question));
        if failed != change.fails {
            wrong.push(format!("{} fails {failed:?}, not {:?}", change.original, change.fails));
        }
    }
    assert!(wrong.is_empty(), "{TOUR} should say otherwise: {}", wrong.join("\n"));
}
