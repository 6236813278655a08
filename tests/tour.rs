//! The tour of the code is true: its pictures show what the code has, and whatever it names exists.
//!
//! The picture of the states is drawn here, from `state::TRANSITIONS`:
//!
//!     ECHOD_DRAW=1 cargo test --test tour             # after a change of the table or of a picture
//!     cargo test --test tour -- --ignored --nocapture # takes out every line that the tour proposes to take out

#![allow(clippy::print_stdout, reason = "the long test says how far it is")]

#[path = "support/experiments.rs"]
mod experiments;

use std::fmt::Write;
use std::fs;

use echod::event_loop::outcome::CloseReason;
use echod::event_loop::state::TRANSITIONS;
use experiments::{Experiment, read};

const PAGE: &str = "src/docs/tour.md";
const LOOP: &str = "src/docs/loop.svg";
const STATES: &str = "src/docs/states.svg";

/// The file holds this; or is made to, when asked for.
fn expect_file(path: &str, content: &str) {
    if std::env::var_os("ECHOD_DRAW").is_some() {
        fs::write(path, content).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    assert!(read(path) == content, "{path} is not what it is made from; ECHOD_DRAW=1 draws it again");
}

// ---- the picture of the states ----

/// Where each state and each end stands: the middle of its box.
const PLACES: [(&str, i32, i32); 10] = [
    ("Established", 110, 60),
    ("OneMessage", 770, 60),
    ("CloseWait", 440, 150),
    ("finished", 440, 50),
    ("Draining", 110, 280),
    ("Finishing", 440, 280),
    ("FinWait", 250, 400),
    ("Discarding", 640, 400),
    ("drained", 250, 500),
    ("one_shot", 640, 500),
];
const HALF_WIDTH: i32 = 68;
const HALF_HEIGHT: i32 = 20;

/// Where the line from the middle of a box to another place leaves the box.
fn edge_of_box((x, y): (i32, i32), (to_x, to_y): (i32, i32)) -> (i32, i32) {
    let (dx, dy) = (f64::from(to_x - x), f64::from(to_y - y));
    let out = (f64::from(HALF_WIDTH + 4) / dx.abs()).min(f64::from(HALF_HEIGHT + 4) / dy.abs());
    (x + (dx * out) as i32, y + (dy * out) as i32)
}

fn draw_states() -> String {
    let place = |name: &str| {
        let place = PLACES.iter().find(|place| place.0 == name);
        place.map(|&(_, x, y)| (x, y)).unwrap_or_else(|| panic!("{name} has no place in the picture"))
    };
    let mut svg = String::from(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 580" width="880" height="580" font-family="ui-sans-serif, system-ui, sans-serif" font-size="13">
<title>The states of a connection, drawn from state::TRANSITIONS</title>
<style>
  .paper { fill: #ffffff } .ink { fill: #1f2328 } .line { stroke: #57606a; stroke-width: 1.4; fill: none } .head { fill: #57606a }
  .state { fill: #ddf4ff; stroke: #0969da } .end { fill: #dafbe1; stroke: #1a7f37 } .label { fill: #424a53; paint-order: stroke; stroke: #ffffff; stroke-width: 7px }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } .ink { fill: #e6edf3 } .line { stroke: #9198a1 } .head { fill: #9198a1 }
    .state { fill: #0c2d6b; stroke: #4493f8 } .end { fill: #04260f; stroke: #3fb950 } .label { fill: #c9d1d9; stroke: #0d1117 }
  }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker></defs>
<rect class="paper" width="880" height="580" rx="8"/>
"##,
    );
    // Two ways between the same two places are one line with two labels.
    let mut lines: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for (from, on, to) in TRANSITIONS {
        match lines.iter_mut().find(|line| (line.0, line.1) == (from, to)) {
            Some(line) => line.2.push(on),
            None => lines.push((from, to, vec![on])),
        }
    }
    let mut add = |text: String| writeln!(svg, "{text}").expect("a string");
    for (from, to, labels) in &lines {
        let (start, end) = (edge_of_box(place(from), place(to)), edge_of_box(place(to), place(from)));
        add(format!(
            r##"<path class="line" d="M{} {} L{} {}" marker-end="url(#head)"/>"##,
            start.0, start.1, end.0, end.1
        ));
        let (x, y) = ((start.0 + end.0) / 2, (start.1 + end.1) / 2 + 4 - 8 * (labels.len() as i32 - 1));
        for (label, line) in labels.iter().zip(0..) {
            add(format!(r#"<text class="label" text-anchor="middle" x="{x}" y="{}">{label}</text>"#, y + 16 * line));
        }
    }
    for (name, x, y) in PLACES {
        let class = if CloseReason::NAMES.contains(&name) { "end" } else { "state" };
        let (left, top) = (x - HALF_WIDTH, y - HALF_HEIGHT);
        add(format!(r#"<rect class="{class}" x="{left}" y="{top}" width="136" height="40" rx="8"/>"#));
        add(format!(r#"<text class="ink" text-anchor="middle" font-weight="600" x="{x}" y="{}">{name}</text>"#, y + 5));
    }
    add(
        r#"<text class="ink" x="24" y="560">In any state: RST ends it (reset), and so does another error (error). From outside: idle; cut.</text>
</svg>"#
            .into(),
    );
    svg
}

#[test]
fn the_picture_of_the_states_is_drawn_from_the_table() {
    for (name, ..) in PLACES {
        assert!(TRANSITIONS.iter().any(|way| way.0 == name || way.2 == name), "{name} is no state, and no end");
    }
    expect_file(STATES, &draw_states());
}

// ---- the picture of the loop ----

#[test]
fn the_picture_of_the_loop_has_the_steps_of_run_in_their_order() {
    let source = read("src/event_loop/server.rs");
    let run = &source[source.find("pub fn run").expect("run")..];
    let run = &run[run.find("while").expect("a loop")..run.find("\n    }").expect("its end")];
    let mut steps: Vec<&str> = run
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("self.").or(line.trim_start().strip_prefix("observer.")))
        .filter_map(|call| call.split('(').next()?.split('.').next_back())
        .collect();
    steps.dedup(); // `end_iteration` is one step for two callees.
    let picture = read(LOOP);
    let shown: Vec<&str> = picture
        .match_indices(r#"class="step""#)
        .filter_map(|(start, _)| picture[start..].split('>').nth(1)?.split('<').next())
        .collect();
    assert_eq!(shown, steps);
}

// ---- both pictures, in the documentation ----

/// A picture as a link definition that holds all of it, since rustdoc copies no files.
fn embedded(name: &str, svg: &str) -> String {
    let mut definition = format!("[{name}]: data:image/svg+xml,");
    for byte in svg.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b';' | b'=' | b',' | b'/' => {
                definition.push(char::from(byte));
            }
            _ => write!(definition, "%{byte:02X}").expect("a string"),
        }
    }
    definition + "\n"
}

#[test]
fn the_documentation_embeds_the_pictures_as_they_are() {
    let pictures = embedded("loop", &read(LOOP)) + &embedded("states", &read(STATES));
    expect_file("src/docs/pictures.md", &pictures);
}

// ---- the page ----

/// A row of "what to try": the module, the line as it is and as it shall be, and the test that then fails.
fn experiments() -> Vec<Experiment> {
    let page = read(PAGE);
    let mut experiments = Vec::new();
    let rows = page.lines().skip_while(|line| !line.starts_with("| module | in it |"));
    for row in rows.skip(2).take_while(|line| line.starts_with("| ")) {
        let spans: Vec<String> = row.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let cells = row.split(" | ").count();
        assert_eq!((spans.len(), cells), (4, 4), "a file, a line, another, a test: {row}");
        let [file, original, replacement, test] = spans.try_into().expect("four");
        experiments.push(Experiment { file, original, replacement, test });
    }
    experiments
}

#[test]
fn every_module_of_the_loop_has_something_to_try_and_a_test_that_fails() {
    let experiments = experiments();
    for file in experiments::sources_in("src") {
        let file = file.to_string_lossy().into_owned();
        let is_page = file.ends_with("/mod.rs") || file.ends_with("/lib.rs");
        assert!(is_page || read(PAGE).contains(&format!("`{file}`")), "the tour does not mention {file}");
    }
    assert!(experiments.len() >= 15);
    experiments.iter().for_each(Experiment::assert_applicable);
}

#[test]
#[ignore = "builds the crate once for each line to try: a quarter of an hour"]
fn every_line_to_try_makes_its_test_fail() {
    experiments::assert_all_fail(experiments());
}
