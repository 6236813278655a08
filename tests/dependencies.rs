//! What the crate is built from: licences, Rust versions, and nothing twice in the binary.
//!
//! Asked of `cargo metadata`, which every machine that builds has. `cargo deny` knows more (advisories), but takes longer to
//! build than all of this, and its database is a clone from the network: run it where there is one.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Licences under which code may go into a binary that is under MIT itself.
const ACCEPTED: [&str; 6] = ["MIT", "Apache-2.0", "Unlicense", "Unicode-3.0", "BSD-3-Clause", "Zlib"];

fn metadata() -> Value {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path"]);
    let output = command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// `(MIT OR Apache-2.0) AND Unicode-3.0`: one of each row must be accepted. Enough of SPDX for what there is: no AND inside
/// of brackets.
fn is_accepted(licence: &str) -> bool {
    let one_of = |row: &str| {
        let row = row.replace('/', " OR "); // As it was written before SPDX.
        row.trim_matches(['(', ')', ' ']).split(" OR ").any(|name| ACCEPTED.contains(&name.trim()))
    };
    !licence.is_empty() && licence.split(" AND ").all(one_of)
}

#[test]
fn every_licence_goes_with_ours() {
    assert!(is_accepted("(MIT OR Apache-2.0) AND Unicode-3.0") && is_accepted("Unlicense/MIT"));
    assert!(!is_accepted("GPL-3.0-only") && !is_accepted("MIT AND GPL-3.0-only") && !is_accepted(""));
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20, "only {} packages", packages.len());
    for package in packages {
        let licence = text(package, "license");
        assert!(is_accepted(licence), "{} is under {licence:?}", text(package, "name"));
    }
}

#[test]
fn no_dependency_wants_a_newer_rust_than_we_promise() {
    let number = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours = number(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages {
        let Some(theirs) = package["rust_version"].as_str() else { continue };
        assert!(number(theirs)[..2] <= ours[..2], "{} wants Rust {theirs}", text(package, "name"));
    }
}

#[test]
fn nothing_is_in_the_binary_twice() {
    let metadata = metadata();
    let nodes: BTreeMap<&str, &Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| (text(node, "id"), node)).collect();
    let is_linked = |dependency: &Value| {
        let kinds = dependency["dep_kinds"].as_array().unwrap();
        // Not for development or building only, and not for Windows, where we do not run.
        kinds.iter().any(|kind| kind["kind"].is_null() && !text(kind, "target").contains("windows"))
    };
    let mut linked = BTreeSet::new();
    let mut to_visit = vec![text(&metadata["resolve"], "root")];
    while let Some(id) = to_visit.pop() {
        if linked.insert(id) {
            let dependencies = nodes[id]["deps"].as_array().unwrap();
            to_visit.extend(dependencies.iter().filter(|dependency| is_linked(dependency)).map(|d| text(d, "pkg")));
        }
    }
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let is_macro = package["targets"].as_array().unwrap().iter().any(|target| target["kind"][0] == "proc-macro");
        if linked.contains(text(package, "id")) && !is_macro {
            versions.entry(text(package, "name")).or_default().push(text(package, "version"));
        }
    }
    // What only macros are made of runs in the compiler.
    versions.remove("syn");
    let twice: Vec<_> = versions.iter().filter(|(_, versions)| versions.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(versions.len() > 10, "only {versions:?}");
}
