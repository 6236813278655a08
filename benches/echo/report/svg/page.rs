//! The shapes of a picture.

use std::fmt::{Display, Write};

use super::style::{class, emphasis, style_sheet};
use crate::report::Machine;
use crate::results::Spread;

/// The width of a picture, unless it has one of its own.
pub const WIDTH: f64 = 880.0;
/// The space to the left and right.
pub const MARGIN: f64 = 32.0;
/// The space to the left and right of a picture that is narrower than [`WIDTH`].
pub const NARROW_MARGIN: f64 = 16.0;

/// One server in a panel of bars.
pub struct Bar<'a> {
    pub name: &'a str,
    pub spread: Spread,
    pub user: f64,
    pub label: String,
}

/// The distance between two bars.
pub const BAR_PITCH: f64 = 23.0;
/// The width of the column of names.
pub const NAME_WIDTH: f64 = 96.0;

/// A picture under construction.
pub struct Page {
    width: f64,
    height: f64,
    body: String,
}

impl Page {
    pub fn new(height: f64) -> Page {
        Page::with_width(WIDTH, height)
    }

    pub fn with_width(width: f64, height: f64) -> Page {
        Page { width, height, body: String::new() }
    }

    pub fn head(&mut self, title: &str, subtitle: &str) {
        self.text((MARGIN, 46.0), "title", title);
        self.text((MARGIN, 70.0), "subtitle", subtitle);
    }

    /// Names the machine at the bottom, and how the figures were formed or how disturbed they are.
    pub fn foot(&mut self, machine: &Machine, (disturbed, rounds, _): (usize, usize, f64), how: &str) {
        let how = if disturbed * 10 > rounds { &format!("{disturbed} of {rounds} rounds disturbed") } else { how };
        let Machine { processor, kernel, cores, .. } = machine;
        if self.width < WIDTH {
            let lines = [format!("{processor},"), format!("{cores},"), format!("{kernel}, loopback; {how}.")];
            for (line, above) in lines.iter().zip([48.0, 32.0, 16.0]) {
                self.text((NARROW_MARGIN, self.height - above), "foot", line);
            }
        } else {
            let line = format!("{processor}, {kernel}, loopback, {cores}; {how}.");
            self.text((MARGIN, self.height - 18.0), "foot", &line);
        }
    }

    /// Draws horizontal bars. A bar that is far longer than the others is cut and marked.
    pub fn bars(&mut self, (left, top): (f64, f64), width: f64, bars: &[Bar]) {
        let mut lengths: Vec<f64> = bars.iter().map(|bar| bar.spread.median).collect();
        lengths.sort_by(f64::total_cmp);
        // The scale ends at the longest bar that is at most 2.5 times as long as the median one.
        let Some(&usual) = lengths.get(lengths.len() / 2) else { return };
        let longest = lengths.iter().copied().filter(|length| *length <= 2.5 * usual).fold(0.0, f64::max) * 1.12;
        let (origin, room) = (left + NAME_WIDTH, width - NAME_WIDTH - 64.0);
        let scale = |value: f64| value / longest * room;
        for (index, bar) in bars.iter().enumerate() {
            let middle = top + (index as f64 + 0.5) * BAR_PITCH;
            let color = format!("{}-bar", class(bar.name));
            let cut = bar.spread.median > longest;
            let length = if cut { room } else { scale(bar.spread.median) };
            self.text((origin - 9.0, middle + 4.5), &format!("name end {}", emphasis(bar.name)), bar.name);
            self.rect((origin, middle - 7.5), (length, 15.0), &format!("{color} kernel"));
            self.rect((origin, middle - 7.5), (length * bar.user, 15.0), &format!("{color} user"));
            let mut end = length;
            if cut {
                // Two strokes in the background color: the bar continues.
                for offset in [-22.0, -15.0] {
                    self.line(
                        (origin + room + offset, middle + 10.0),
                        (origin + room + offset + 6.0, middle - 10.0),
                        "gap",
                    );
                }
            } else {
                end = scale(bar.spread.max).clamp(length, room);
                self.whisker((origin + scale(bar.spread.min), origin + end), middle);
            }
            self.text((origin + end + 8.0, middle + 4.5), &format!("value {}", emphasis(bar.name)), &bar.label);
        }
    }

    /// Draws a line from the minimum to the maximum.
    pub fn whisker(&mut self, (from, to): (f64, f64), middle: f64) {
        self.line((from, middle), (to, middle), "whisker");
        for end in [from, to] {
            self.line((end, middle - 3.0), (end, middle + 3.0), "whisker");
        }
    }

    /// Draws names at the ends of curves, moved apart so that they do not overlap.
    pub fn end_labels<'a>(&mut self, x: f64, (top, bottom): (f64, f64), ends: impl Iterator<Item = (&'a str, f64)>) {
        const PITCH: f64 = 17.0;
        let mut labels: Vec<(&str, f64)> = ends.collect();
        labels.sort_by(|one, other| one.1.total_cmp(&other.1));
        let mut lowest = top;
        for label in &mut labels {
            label.1 = label.1.max(lowest);
            lowest = label.1 + PITCH;
        }
        let mut highest = bottom;
        for label in labels.iter_mut().rev() {
            label.1 = label.1.min(highest);
            highest = label.1 - PITCH;
        }
        for (name, y) in labels {
            self.text((x, y + 4.5), &format!("name {}-text {}", class(name), emphasis(name)), name);
        }
    }

    pub fn text(&mut self, (x, y): (f64, f64), class: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#));
    }

    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.add(format_args!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#));
    }

    pub fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str) {
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"/>"#
        ));
    }

    pub fn circle(&mut self, (x, y): (f64, f64), radius: f64, class: &str) {
        self.add(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" class="{class}"/>"#));
    }

    pub fn polyline(&mut self, points: impl Iterator<Item = (f64, f64)>, class: &str) {
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!(r#"<polyline points="{}" class="{class}"/>"#, points.join(" ")));
    }

    fn add(&mut self, shape: impl Display) {
        writeln!(self.body, "{shape}").expect("writing to a String does not fail");
    }

    pub fn finish(self) -> String {
        let Page { width, height, body } = self;
        let style = style_sheet();
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<style>
{style}</style>
<rect width="{width}" height="{height}" rx="10" class="ground"/>
{body}</svg>
"#
        )
    }
}
