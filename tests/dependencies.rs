//! Checks the dependencies: licenses, minimum Rust versions, and no duplicates in the binary.
//!
//! The data comes from `cargo metadata`, which is available wherever the crate can be built. `.ci/run` also runs
//! `cargo deny` (see `.cargo/deny.toml`), which checks licenses, duplicates and sources again, and knows about advisories.
//!
//! For the minimum Rust version (`rust-version`), only what the dependencies declare is checked here. Clippy's
//! `incompatible_msrv` rejects newer functions of std in our own code, except in tests, but does not notice newer syntax.
//! Only a build with that version would notice everything.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Licenses under which code may be part of a binary that is itself licensed under MIT.
const ACCEPTED: [&str; 3] = ["MIT", "Apache-2.0", "Unicode-3.0"];

/// Returns the output of `cargo metadata` for this platform only: crates for Windows are not downloaded, and echod does not
/// run there.
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

/// Returns whether a license expression is acceptable: in `(MIT OR Apache-2.0) AND Unicode-3.0`, one alternative of each
/// group must be accepted. Supports as much of SPDX as is in use: no AND inside parentheses.
fn is_accepted(license: &str) -> bool {
    let one_of = |group: &str| {
        let group = group.replace('/', " OR "); // The notation before SPDX.
        group.trim_matches(['(', ')', ' ']).split(" OR ").any(|name| ACCEPTED.contains(&name.trim()))
    };
    !license.is_empty() && license.split(" AND ").all(one_of)
}

#[test]
fn every_license_is_compatible() {
    assert!(is_accepted("(MIT OR Apache-2.0) AND Unicode-3.0") && is_accepted("Unlicense/MIT"));
    assert!(!is_accepted("GPL-3.0-only") && !is_accepted("MIT AND GPL-3.0-only") && !is_accepted(""));
    let deny = include_str!("../.cargo/deny.toml");
    assert!(deny.contains(&format!("\nallow = {ACCEPTED:?}\n")), "cargo deny should accept the same licenses");
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20, "found only {} packages", packages.len());
    for package in packages {
        let license = text(package, "license");
        assert!(is_accepted(license), "{} is licensed under {license:?}", text(package, "name"));
    }
}

#[test]
fn no_dependency_requires_a_newer_rust() {
    let number = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours = number(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages {
        let Some(theirs) = package["rust_version"].as_str() else { continue };
        assert!(number(theirs)[..2] <= ours[..2], "{} requires Rust {theirs}", text(package, "name"));
    }
}

#[test]
fn binary_contains_no_duplicate_crates() {
    let metadata = metadata();
    let nodes: BTreeMap<&str, &Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| (text(node, "id"), node)).collect();
    let is_linked = |dependency: &Value| {
        let kinds = dependency["dep_kinds"].as_array().unwrap();
        // Normal dependencies; those for development or building have a kind.
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
    // Only used by macros, which run in the compiler.
    versions.remove("syn");
    let twice: Vec<_> = versions.iter().filter(|(_, versions)| versions.len() > 1).collect();
    assert!(twice.is_empty(), "linked in several versions: {twice:?}");
    assert!(versions.len() > 10, "found only {versions:?}");
}
