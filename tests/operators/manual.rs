//! The manual page describes every series of the metrics endpoint, and nothing else.

use std::collections::BTreeSet;

use crate::http::metrics;
use crate::support::Daemon;

/// Lines of the manual page that name a series: `\fBname\fR (type)`, possibly with `{label}` after the name.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../../packaging/echod.1");
    let entry = |line: &str| {
        let (name, kind) = line.strip_prefix("\\fB")?.split_once("\\fR (")?;
        let name = name.split('{').next()?;
        Some(format!("{name} {}", kind.strip_suffix(')')?))
    };
    page.lines().filter_map(entry).collect()
}

#[test]
fn manual_page_documents_every_series() {
    let page = metrics(&Daemon::start(&["--metrics=127.0.0.1:0"]));
    let exported: BTreeSet<String> =
        page.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
    assert!(exported.len() > 15, "too few series: {exported:?}");
    assert_eq!(documented(), exported, "packaging/echod.1.in differs from the endpoint");
}
