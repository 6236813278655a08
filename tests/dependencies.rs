//! What the crate is built from: licences, Rust versions, and nothing twice in the binary.
//!
//! Asked of `cargo metadata`, which every machine that builds has. `cargo deny` asks for licences, duplicates and sources
//! again, by `.cargo/deny.toml` and where `.ci/run` has it, and knows advisories.
//!
//! Of the Rust that we promise (`rust-version`), what the dependencies declare is looked at here. That our own code calls
//! nothing newer in std is clippy's `incompatible_msrv`, an error under `-D warnings`, though not inside of tests; newer
//! syntax it does not see. Only a build with that Rust would see everything.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Licences under which code may go into a binary that is under MIT itself.
const ACCEPTED: [&str; 3] = ["MIT", "Apache-2.0", "Unicode-3.0"];

/// Of what is built here: nobody has downloaded Windows' crates, and we do not run there.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO")).arg("-vV").output().unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    command.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    let output = command.output().unwrap();
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
    let deny = include_str!("../.cargo/deny.toml");
    assert!(deny.contains(&format!("\nallow = {ACCEPTED:?}\n")), "cargo deny accepts others");
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
        // Not for development or building only.
        kinds.iter().any(|kind| kind["kind"].is_null())
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
