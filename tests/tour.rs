//! Checks the tour of the code: its pictures, tables and quotations match the code, and what it names exists.
//!
//! The picture of the states is drawn here, from `state::TRANSITIONS`:
//!
//!     ECHOD_DRAW=1 cargo test --test tour             # after a change of the table or of a picture
//!     cargo test --test tour -- --ignored --nocapture # breaks every line that the tour proposes to break

#![allow(clippy::print_stdout, reason = "the long test reports its progress")]

#[path = "support/experiments.rs"]
mod experiments;

use std::fmt::Write;
use std::fs;

use echod::event_loop::outcome::CloseReason;
use echod::event_loop::state::TRANSITIONS;
use experiments::{Experiment, read};

const PAGE: &str = "src/docs/tour.md";
const LADDER: &str = "src/docs/ladder.svg";
const LOOP: &str = "src/docs/loop.svg";
const STATES: &str = "src/docs/states.svg";

/// Compares a file with the generated text, or writes it with ECHOD_DRAW.
fn expect_file(path: &str, content: &str) {
    if std::env::var_os("ECHOD_DRAW").is_some() {
        fs::write(path, content).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    assert!(read(path) == content, "{path} is out of date; ECHOD_DRAW=1 cargo test --test tour writes it");
}

// ---- the picture of the states ----

/// A box of the picture: a state or an end, the middle of its box, and what happens in it. A new state needs one line here.
struct Place {
    name: &'static str,
    x: i32,
    y: i32,
    what: &'static str,
    /// Whether output may be pending in this state.
    may_stall: bool,
}

const fn place(name: &'static str, x: i32, y: i32, what: &'static str, may_stall: bool) -> Place {
    Place { name, x, y, what, may_stall }
}

const PLACES: [Place; 11] = [
    place("finished", 480, 60, "peer's FIN first", false),
    place("LastAck", 90, 90, "wait for the last ACK", false),
    place("CloseWait", 480, 180, "write what is left", true),
    place("OneMessage", 860, 180, "one read, one echo", false),
    place("Established", 250, 250, "read, echo", true),
    place("Draining", 480, 320, "echo what has arrived", true),
    place("Finishing", 480, 450, "write what is left", true),
    place("FinWait", 250, 560, "discard, wait for FIN", false),
    place("Discarding", 700, 560, "discard what has arrived", false),
    place("drained", 90, 660, "our FIN first", false),
    place("one_shot", 700, 660, "our FIN first", false),
];

/// Where a connection begins, and how.
const STARTS: [(&str, i32, i32, &str); 2] =
    [("Established", 250, 168, "accept(2)"), ("OneMessage", 860, 90, "one-shot")];

/// A state that an event does not change, which the table has no line for.
const STAYS: (&str, [&str; 2]) = ("OneMessage", ["shutdown, but the", "message has arrived"]);

/// Labels that would be in the way in the middle of their arrow: where along the arrow they go, in percent, and whether to
/// its lower left.
const MOVED_LABELS: [(&str, &str, i32, bool); 6] = [
    ("LastAck", "drained", 80, false),
    ("Established", "Draining", 50, true),
    ("Draining", "CloseWait", 50, true),
    ("Draining", "Finishing", 50, true),
    ("Finishing", "FinWait", 35, false),
    ("FinWait", "LastAck", 42, false),
];

const WIDTH: i32 = 960;
const HEIGHT: i32 = 780;
const HALF_WIDTH: i32 = 80;
const HALF_HEIGHT: i32 = 24;

const STYLE: &str = r##"<style>
  .paper { fill: #ffffff } .ink { fill: #1f2328 } .small { fill: #57606a } .line { stroke: #57606a; stroke-width: 1.4; fill: none } .head { fill: #57606a }
  .state { fill: #ddf4ff; stroke: #0969da } .end { fill: #dafbe1; stroke: #1a7f37 } .label { fill: #424a53 } .stall { fill: #9a6700 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } .ink { fill: #e6edf3 } .small { fill: #b1bac4 } .line { stroke: #9198a1 } .head { fill: #9198a1 }
    .state { fill: #0c2d6b; stroke: #4493f8 } .end { fill: #04260f; stroke: #3fb950 } .label { fill: #c9d1d9 } .stall { fill: #e3b341 }
  }
</style>
"##;

/// Returns where the line from the middle of a box to another place leaves the box.
fn edge_of_box((x, y): (i32, i32), (to_x, to_y): (i32, i32)) -> (i32, i32) {
    let (dx, dy) = (f64::from(to_x - x), f64::from(to_y - y));
    let out = (f64::from(HALF_WIDTH + 4) / dx.abs()).min(f64::from(HALF_HEIGHT + 4) / dy.abs());
    (x + (dx * out) as i32, y + (dy * out) as i32)
}

/// Draws an arrow with its labels beside it, so that no label covers a line. Several events are several labels, joined by
/// "or".
fn draw_arrow(svg: &mut String, start: (i32, i32), end: (i32, i32), labels: &[&str], place: (i32, bool)) {
    let ((x1, y1), (x2, y2)) = (start, end);
    writeln!(svg, r##"<path class="line" d="M{x1} {y1} L{x2} {y2}" marker-end="url(#head)"/>"##).expect("a string");
    let (percent, is_lower_left) = place;
    let (dx, dy, rows) = (x2 - x1, y2 - y1, labels.len() as i32);
    let (at_x, at_y) = (x1 + dx * percent / 100, y1 + dy * percent / 100);
    let (anchor, x, y) = if is_lower_left {
        ("end", at_x - 12, at_y + 16)
    } else if dx.abs() < 20 {
        ("start", at_x + 10, at_y + 4 - 8 * (rows - 1))
    } else if dy.abs() < 20 {
        ("middle", at_x, at_y - 8 - 16 * (rows - 1))
    } else if dx * dy > 0 {
        ("start", at_x + 12, at_y - 4 - 16 * (rows - 1))
    } else if dx < 0 {
        ("end", at_x - 12, at_y - 4 - 16 * (rows - 1))
    } else {
        ("start", at_x + 12, at_y + 16)
    };
    for (row, label) in (0..).zip(labels) {
        let or = if row > 0 { "or " } else { "" };
        let y = y + 16 * row;
        writeln!(svg, r#"<text class="label" text-anchor="{anchor}" x="{x}" y="{y}">{or}{label}</text>"#)
            .expect("a string");
    }
}

fn draw_box(svg: &mut String, place: &Place) {
    let &Place { name, x, y, what, may_stall } = place;
    let class = if CloseReason::NAMES.contains(&name) { "end" } else { "state" };
    let (left, top, width, height) = (x - HALF_WIDTH, y - HALF_HEIGHT, 2 * HALF_WIDTH, 2 * HALF_HEIGHT);
    writeln!(svg, r#"<rect class="{class}" x="{left}" y="{top}" width="{width}" height="{height}" rx="8"/>"#)
        .expect("a string");
    let (name_y, what_y) = (y - 3, y + 15);
    writeln!(
        svg,
        r#"<text class="ink" text-anchor="middle" font-weight="600" x="{x}" y="{name_y}">{name}</text>
<text class="small" text-anchor="middle" font-size="12" x="{x}" y="{what_y}">{what}</text>"#
    )
    .expect("a string");
    if may_stall {
        draw_stall_mark(svg, left + width - 16, top + 7);
    }
}

/// Draws the two bars of a pause sign.
fn draw_stall_mark(svg: &mut String, x: i32, y: i32) {
    for x in [x, x + 6] {
        writeln!(svg, r#"<rect class="stall" x="{x}" y="{y}" width="3" height="11"/>"#).expect("a string");
    }
}

fn draw_states() -> String {
    let find = |name: &str| {
        let place = PLACES.iter().find(|place| place.name == name);
        place.unwrap_or_else(|| panic!("{name} has no place in the picture: add a line to PLACES"))
    };
    let middle = |name: &str| (find(name).x, find(name).y);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="ui-sans-serif, system-ui, sans-serif" font-size="13">
<title>The states of a connection, drawn from state::TRANSITIONS</title>
{STYLE}<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker></defs>
<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>
"##
    );
    // Two transitions between the same two states are one arrow with two labels.
    let mut arrows: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for (from, on, to) in TRANSITIONS {
        match arrows.iter_mut().find(|arrow| (arrow.0, arrow.1) == (from, to)) {
            Some(arrow) => arrow.2.push(on),
            None => arrows.push((from, to, vec![on])),
        }
    }
    for (from, to, labels) in &arrows {
        let (start, end) = (edge_of_box(middle(from), middle(to)), edge_of_box(middle(to), middle(from)));
        let moved = MOVED_LABELS.iter().find(|label| (&label.0, &label.1) == (from, to));
        draw_arrow(&mut svg, start, end, labels, moved.map_or((50, false), |label| (label.2, label.3)));
    }
    for (name, x, y, label) in STARTS {
        writeln!(svg, r#"<circle class="head" cx="{x}" cy="{y}" r="7"/>"#).expect("a string");
        draw_arrow(&mut svg, (x, y + 7), edge_of_box(middle(name), (x, y)), &[label], (50, false));
    }
    let (x, y) = middle(STAYS.0);
    let (x1, x2, y) = (x + 10, x + 50, y + HALF_HEIGHT);
    let (arrow_head, bend, right) = (y + 4, y + 40, x + HALF_WIDTH);
    writeln!(
        svg,
        r##"<path class="line" d="M{x2} {y} C{x2} {bend} {x1} {bend} {x1} {arrow_head}" marker-end="url(#head)"/>"##
    )
    .expect("a string");
    for (y, label) in [y + 48, y + 64].into_iter().zip(STAYS.1) {
        writeln!(svg, r#"<text class="label" text-anchor="end" x="{right}" y="{y}">{label}</text>"#).expect("a string");
    }
    for place in &PLACES {
        draw_box(&mut svg, place);
    }
    draw_stall_mark(&mut svg, 24, 715);
    let notes = [
        (
            44,
            725,
            "The connection may be stalled here: output is pending, and nothing is read until it has been written.",
        ),
        (24, 751, "In any state, RST closes the connection (reset), and so does any other error (error)."),
        (24, 769, "From outside: no byte moves for the idle timeout (idle), or the drain timeout expires (cut)."),
    ];
    for (x, y, note) in notes {
        writeln!(svg, r#"<text class="ink" x="{x}" y="{y}">{note}</text>"#).expect("a string");
    }
    svg + "</svg>\n"
}

#[test]
fn picture_of_the_states_matches_the_table() {
    for Place { name, .. } in PLACES {
        let is_known = TRANSITIONS.iter().any(|transition| transition.0 == name || transition.2 == name);
        assert!(is_known, "{name} is neither a state nor an end in TRANSITIONS");
    }
    expect_file(STATES, &draw_states());
}

/// A rectangle: left, top, right, bottom.
type Area = (i32, i32, i32, i32);

/// Returns the labels of a picture and the areas that they cover, for letters of about 7 pixels.
fn label_areas(svg: &str) -> Vec<(&str, Area)> {
    let labels = svg.split(r#"<text class="label" "#).skip(1).map(|label| {
        let (attributes, text) = label.split_once("</text>").expect("an end").0.split_once('>').expect("a text");
        let attribute = |name| attributes.split(name).nth(1).expect(name).split('"').nth(1).expect(name);
        let number = |name| attribute(name).parse::<i32>().expect(name);
        let (x, y, width) = (number(" x="), number(" y="), 36 * text.len() as i32 / 5);
        let left = match attribute("text-anchor=") {
            "start" => x,
            "middle" => x - width / 2,
            "end" => x - width,
            other => panic!("no such anchor: {other}"),
        };
        (text, (left, y - 11, left + width, y + 3))
    });
    labels.collect()
}

fn overlap(a: Area, b: Area) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

#[test]
fn labels_in_the_picture_do_not_overlap() {
    let svg = draw_states();
    let labels = label_areas(&svg);
    assert!(labels.len() > TRANSITIONS.len() / 2, "found only {labels:?}");
    for (index, (label, area)) in labels.iter().enumerate() {
        let other = labels[index + 1..].iter().find(|other| overlap(*area, other.1));
        assert_eq!(other, None, "{label:?} at {area:?} covers another label");
        let is_covered = |place: &&Place| {
            overlap(*area, (place.x - HALF_WIDTH, place.y - HALF_HEIGHT, place.x + HALF_WIDTH, place.y + HALF_HEIGHT))
        };
        let place = PLACES.iter().find(is_covered).map(|place| place.name);
        assert_eq!(place, None, "{label:?} at {area:?} covers a box");
    }
}

#[test]
fn picture_of_the_loop_has_the_steps_of_run() {
    let source = read("src/event_loop/server.rs");
    let run = &source[source.find("pub fn run").expect("run")..];
    let run = &run[run.find("while").expect("a loop")..run.find("\n        }").expect("its end")];
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

// ---- the picture of the ladder ----

#[test]
fn picture_of_the_ladder_has_the_current_answers() {
    // A text of the picture: its horizontal position, its class, and what it says.
    let svg = read(LADDER);
    let texts = svg.lines().filter_map(|line| {
        let (attributes, text) = line.strip_prefix("<text x=\"")?.split_once('>')?;
        let (x, class) = (attributes.split('"').next()?, attributes.split("class=\"").nth(1)?);
        Some((x, class, text.split('<').next()?))
    });
    let texts: Vec<(&str, &str, &str)> = texts.collect();
    let column = texts.iter().find(|(_, _, text)| *text == "questions").expect("a column for the questions").0;
    let drawn: Vec<&str> =
        texts.iter().filter(|(x, class, _)| *x == column && class.starts_with("value")).map(|text| text.2).collect();

    let table = read("examples/ladder/README.md");
    let rows: Vec<Vec<&str>> =
        table.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect()).collect();
    // Rung 0 is not drawn.
    let passes = |rung: usize| rows.iter().filter(|cells| cells[2 + rung].starts_with('✓')).count().to_string();
    let stale = "src/docs/ladder.svg is out of date; CONTRIBUTING.md has the command that draws it";
    assert_eq!(drawn, (1..=7).map(passes).collect::<Vec<_>>(), "{stale}");
    assert!(texts.iter().any(|(_, _, text)| *text == format!("passed of {}", rows.len())), "{stale}");
}

// ---- all pictures ----

/// Returns the color that a style sheet gives to a class, in the light or in the dark scheme.
fn color(svg: &str, class: &str, dark: bool) -> u32 {
    let style = svg.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next()).expect("a style sheet");
    let (light, dark_rules) = style.split_once("@media").expect("a dark scheme");
    let find = |rules: &str| {
        rules.split('}').find_map(|rule| {
            let selectors = rule.rsplit('{').nth(1).unwrap_or_default();
            let is_meant = selectors.split([',', ' ', '\n']).any(|selector| selector == format!(".{class}"));
            let hex = rule.split("fill: #").nth(1).filter(|_| is_meant)?;
            u32::from_str_radix(&hex[..6], 16).ok()
        })
    };
    let found = if dark { find(dark_rules).or_else(|| find(light)) } else { find(light) };
    found.unwrap_or_else(|| panic!("no fill for .{class}"))
}

/// Returns the contrast of two colors as WCAG 2 defines it, from 1 to 21.
fn contrast(a: u32, b: u32) -> f64 {
    let luminance = |color: u32| -> f64 {
        let channel = |shift: u32| {
            let value = f64::from(color >> shift & 0xff) / 255.0;
            if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(16) + 0.7152 * channel(8) + 0.0722 * channel(0)
    };
    let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
    (a / b).max(b / a)
}

#[test]
fn text_in_pictures_has_enough_contrast() {
    let states =
        [("ink", "state"), ("small", "state"), ("ink", "end"), ("small", "end"), ("label", "paper"), ("ink", "paper")];
    let parts = [("step", "box"), ("small", "box"), ("ink", "queue"), ("small", "queue"), ("small", "paper")];
    let words = ["title", "subtitle", "panel", "tick", "name", "value", "foot"].map(|text| (text, "ground"));
    for (file, svg, pairs) in
        [(STATES, draw_states(), &states[..]), (LOOP, read(LOOP), &parts[..]), (LADDER, read(LADDER), &words[..])]
    {
        for (text, background) in pairs {
            for dark in [false, true] {
                let contrast = contrast(color(&svg, text, dark), color(&svg, background, dark));
                assert!(contrast >= 4.5, "{file}: .{text} on .{background}: {contrast:.2}, dark: {dark}");
            }
        }
    }
    assert!((contrast(0, 0xff_ffff) - 21.0).abs() < 0.01);
    assert!(contrast(0x9198a1, 0x0c2d6b) < 4.5, "which was too little once");
}

/// Returns a link definition that contains the whole picture, because rustdoc copies no files.
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
fn documentation_embeds_the_current_pictures() {
    // With ECHOD_DRAW, another test may be writing the file of the states at this moment.
    let pictures = [("ladder", read(LADDER)), ("loop", read(LOOP)), ("states", draw_states())];
    let pictures = pictures.map(|(name, svg)| embedded(name, &svg)).concat();
    expect_file("src/docs/pictures.md", &pictures);
}

// ---- quotations ----

/// Returns the lines of the section with this heading.
fn section<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let lines = page.lines().skip_while(|line| *line != format!("# {heading}"));
    lines.skip(1).take_while(|line| !line.starts_with("# ")).collect()
}

/// Returns the code of a line, without its comments and indentation.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default().trim()
}

#[test]
fn mio_section_quotes_the_third_rung() {
    let page = read(PAGE);
    let rung = read("examples/ladder/3_readiness.rs");
    let rung: Vec<&str> = rung.lines().map(code).collect();
    let mut is_code = false;
    let mut count = 0;
    for line in section(&page, "mio in sixty lines") {
        if line.starts_with("```") {
            is_code = line == "```rs";
        } else if is_code && !line.contains("/* ... */") {
            assert!(rung.contains(&code(line)), "3_readiness.rs does not have this line: {line}");
            count += 1;
        }
    }
    assert!(count > 40, "only {count} lines of code");
}

#[test]
fn ladder_section_has_the_table_of_answers() {
    let table = |text: &str| -> Vec<String> {
        let rows = text.lines().skip_while(|line| !line.starts_with("| question |"));
        rows.take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
    };
    let (ours, theirs) = (table(&read(PAGE)), table(&read("examples/ladder/README.md")));
    assert!(theirs.len() > 10, "examples/ladder/README.md has {} rows", theirs.len());
    assert_eq!(ours, theirs, "the table of examples/ladder/README.md, which tests/ladder.rs checks");
}

#[test]
fn glossary_is_short() {
    let page = read(PAGE);
    let words = section(&page, "Glossary").iter().filter(|line| line.starts_with("| ")).count() - 1;
    assert!(words <= 15, "{words} words; a page that needs more has too much jargon");
}

// ---- the page ----

/// Returns the items of the list in "What to try": the file, a line of it, its replacement, and the test that then fails.
fn experiments() -> Vec<Experiment> {
    let page = read(PAGE);
    let section = section(&page, "What to try").join("\n");
    let item = |item: &str| {
        let spans: Vec<String> = item.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let spans = spans.try_into().unwrap_or_else(|_| panic!("a file, a line, another, a test: {item}"));
        let [file, original, replacement, test] = spans;
        Experiment { file, original, replacement, test }
    };
    section.split("\n- ").skip(1).map(item).collect()
}

#[test]
fn tour_mentions_every_file_and_its_experiments_are_possible() {
    let experiments = experiments();
    for file in experiments::sources_in("src") {
        let file = file.to_string_lossy().into_owned();
        let is_page = file.ends_with("/mod.rs") || file.ends_with("/lib.rs") || file.ends_with("/test_support.rs");
        // In the reference, a reader is led to each file; around it, to the folder.
        let folder = format!("{}/", file.rsplit_once('/').expect("a path").0);
        let is_reference = folder.starts_with("src/event_loop/") || ["src/listen/", "src/"].contains(&folder.as_str());
        let named = if is_reference { &file } else { &folder };
        assert!(is_page || read(PAGE).contains(&format!("`{named}`")), "the tour does not mention {named}");
        assert!(read(&file).starts_with("//! "), "the first line of {file} should say what it holds");
    }
    assert!(experiments.len() >= 15);
    experiments.iter().for_each(Experiment::assert_applicable);
}

#[test]
#[ignore = "builds the crate once per line: a quarter of an hour"]
fn breaking_a_line_makes_its_test_fail() {
    experiments::assert_all_fail(experiments());
}
