//! The page on traps (`src/traps.md`) names what is there: each trap once, with its handling, and with tests that exist.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../src/traps.md");

/// The sections of the page, each with its number.
fn traps() -> Vec<(u32, &'static str)> {
    let sections = PAGE.split("\n**T").skip(1);
    sections.map(|section| (section.split('.').next().unwrap().parse().unwrap(), section)).collect()
}

/// What stands in backquotes.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn source(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// Whether this file has a test of this name: a function behind `#[test]`, with nothing but attributes between.
fn has_test(source: &str, name: &str) -> bool {
    let mut lines = source.lines().map(str::trim_start);
    let function = format!("fn {name}()");
    while lines.any(|line| line == "#[test]") {
        if lines.find(|line| !line.starts_with("#[")).is_some_and(|line| line.starts_with(&function)) {
            return true;
        }
    }
    false
}

#[test]
fn each_trap_stands_on_the_page_once_and_says_how_it_is_handled() {
    let numbers: Vec<u32> = traps().iter().map(|&(number, _)| number).collect();
    assert_eq!(numbers, (1..=33).chain(37..=45).collect::<Vec<u32>>());
    for (number, section) in traps() {
        assert!(section.contains("\n- Handled: "), "T{number} does not say how it is handled");
        let is_tested = section.contains("\n- Tests: `");
        assert!(is_tested || section.contains("No test can change it"), "T{number} names no test");
    }
}

#[test]
fn every_test_that_the_page_names_exists() {
    let mut missing = Vec::new();
    let mut count = 0;
    for (path, name) in spans(PAGE).filter_map(|span| span.split_once(".rs::")) {
        count += 1;
        let path = format!("{path}.rs");
        if !source(&path).is_some_and(|source| has_test(&source, name)) {
            missing.push(format!("{path}::{name}"));
        }
    }
    assert!(count > 60, "only {count} tests were found on the page: is it read as it is written?");
    assert!(missing.is_empty(), "named on the page of traps, and not in the tree: {missing:#?}");
}

#[test]
fn every_file_that_the_page_names_exists() {
    let is_path = |span: &&str| ["src/", "tests/", "benches/"].iter().any(|top| span.starts_with(top));
    for path in spans(PAGE).filter(is_path).filter(|span| !span.contains("::")) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{path} is named, and not there");
    }
}
