//! A sequence diagram in a terminal, line by line: who, when, the arrow, what it did, the kernel's word.
//!
//! Nothing here knows TCP. It is about columns and colours, and about the bound on lines: more than a
//! reader could follow are left out and counted, so that telling never slows what is told.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use std::{env, mem};

use crate::daemon::output::NonBlockingWriter;

/// Lines told in a second, when it goes on for long: already more than a reader can follow, and under 1 % of
/// a processor (a line costs some 5 µs, most of it write(2)).
const MAX_LINES_PER_SECOND: u32 = 1000;

/// Lines that may be told at once after a quiet time: half a millisecond of work.
const MAX_BURST_LINES: u32 = 100;

/// Of these, so many are kept for how connections begin and end: a bulk transfer may hide its own middle only.
const RESERVED_LINES: u32 = 30;

/// Columns of an arrow.
const ARROW_COLUMNS: usize = 36;

/// Columns of what an arrow means: a change of state, or bytes. With the longest state after it, a line has 97.
pub const MEANING_COLUMNS: usize = 27;

/// One diagram, on one outlet, for all connections.
#[derive(Debug)]
pub struct Diagram {
    writer: NonBlockingWriter,
    color: bool,
    /// How many lines may be written now.
    left: u32,
    as_of: Instant,
    /// Lines that were not written since the last that was.
    skipped: u64,
    has_skipped_lines: bool,
    line: String,
}

/// Where an arrow starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It points to the right.
    Client,
    /// It points to the left.
    Server,
}

/// An arrow and what is written on it.
#[derive(Clone, Copy, Debug)]
pub struct Arrow<'a> {
    /// Where it starts.
    pub from: Side,
    /// Whether it is drawn dashed: nobody saw it, it must have been.
    pub inferred: bool,
    /// What is written on it.
    pub label: &'a str,
}

/// A line's place: its connection, and when it was.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    /// The connection's number.
    pub number: u32,
    /// `None`: nobody knows.
    pub time: Option<Duration>,
}

/// How much depends on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// It is one of many.
    Low,
    /// The story cannot be understood without it.
    High,
}

impl Diagram {
    /// On this descriptor, in colour where it is a terminal that has it (<https://no-color.org>).
    pub fn new<T: AsFd + IsTerminal>(shared: T) -> io::Result<Diagram> {
        let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = shared.is_terminal() && unset("NO_COLOR") && !dumb;
        let writer = NonBlockingWriter::new(shared)?;
        Ok(Diagram {
            writer,
            color,
            left: MAX_BURST_LINES,
            as_of: Instant::now(),
            skipped: 0,
            has_skipped_lines: false,
            line: String::new(),
        })
    }

    /// A line that belongs to no connection.
    pub fn heading(&mut self, text: &str) {
        if self.take_line(Priority::High) {
            self.paint(DIM, text);
            self.finish();
        }
    }

    /// An arrow, its meaning, and the kernel's word on it.
    pub fn arrow(&mut self, prefix: Prefix, arrow: Arrow<'_>, meaning: &str, kernel: &str, priority: Priority) {
        if !self.take_line(priority) {
            return;
        }
        self.begin(prefix);
        let dash = if arrow.inferred { "╌" } else { "─" };
        let (tail, head) = match arrow.from {
            Side::Client => (dash, "►"),
            Side::Server => ("◄", dash),
        };
        let fill = ARROW_COLUMNS.saturating_sub(arrow.label.chars().count() + 5);
        let drawn = format!("{tail}{dash} {} {}{head}", arrow.label, dash.repeat(fill));
        let style = match arrow {
            Arrow { label: "RST", .. } => RED,
            Arrow { inferred: true, .. } => DIM,
            _ => color_of(prefix.number),
        };
        self.paint(style, &drawn);
        if !meaning.is_empty() || !kernel.is_empty() {
            let _ = write!(self.line, "  {meaning}");
        }
        if !kernel.is_empty() {
            let _ = write!(self.line, "{:1$}", "", MEANING_COLUMNS.saturating_sub(width(meaning)) + 2);
            self.paint(DIM, kernel);
        }
        self.finish();
    }

    /// What no arrow can say.
    pub fn remark(&mut self, prefix: Prefix, text: &str) {
        if self.take_line(Priority::High) {
            self.begin(prefix);
            self.line.push_str(text);
            self.finish();
        }
    }

    /// Whether there is room for a line of this weight. Whoever would work hard for a line asks first.
    pub fn has_room(&mut self, priority: Priority) -> bool {
        self.refill();
        let needed = match priority {
            Priority::High => 1,
            Priority::Low if self.skipped == 0 => RESERVED_LINES + 1,
            Priority::Low => MAX_BURST_LINES, // A gap, once begun, is worth its line.
        };
        self.left >= needed
    }

    /// Counts a line that found no room.
    pub fn skip_line(&mut self) {
        self.skipped += 1;
        self.has_skipped_lines = true;
    }

    /// Whether lines were left out for being too many, and nobody has been told.
    pub fn has_skipped_lines(&self) -> bool {
        self.has_skipped_lines
    }

    /// Tells it, if things have calmed down.
    pub fn flush_skipped(&mut self) {
        self.refill();
        if self.has_skipped_lines && self.left == MAX_BURST_LINES {
            self.left -= 1;
            self.print_skipped();
        }
    }

    /// Tells how many lines are missing here, if any are.
    pub fn print_skipped(&mut self) {
        self.has_skipped_lines = false;
        if self.skipped > 0 {
            let skipped = mem::take(&mut self.skipped);
            self.paint(DIM, &format!("…     {skipped} lines left out: too many to follow, or not read in time"));
            if !self.write() {
                self.skipped = skipped;
            }
        }
    }

    fn begin(&mut self, prefix: Prefix) {
        self.paint(color_of(prefix.number), &format!("{:<5}", format!("#{}", prefix.number)));
        let _ = match prefix.time {
            Some(time) => write!(self.line, " {:>10.6}  ", time.as_secs_f64()),
            None => write!(self.line, " {:10}  ", ""),
        };
    }

    fn paint(&mut self, style: &str, text: &str) {
        if self.color {
            let _ = write!(self.line, "\x1b[{style}m{text}\x1b[0m");
        } else {
            self.line.push_str(text);
        }
    }

    /// Takes the room of a line, if there is some. If not, the line is counted, and the count is told before the next one.
    fn take_line(&mut self, priority: Priority) -> bool {
        if !self.has_room(priority) {
            self.skip_line();
            return false;
        }
        self.left -= 1;
        self.print_skipped();
        true
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let earned = now.saturating_duration_since(self.as_of).as_millis() * u128::from(MAX_LINES_PER_SECOND) / 1000;
        if earned > 0 {
            self.left = (u128::from(self.left) + earned).min(u128::from(MAX_BURST_LINES)) as u32;
            self.as_of = now;
        }
    }

    fn finish(&mut self) {
        if !self.write() {
            self.skipped += 1;
        }
    }

    /// Writes the line; whether it was taken.
    fn write(&mut self) -> bool {
        let taken = self.writer.write_line(self.line.as_bytes());
        self.line.clear();
        taken
    }
}

const DIM: &str = "2";
const RED: &str = "1;31";

/// Neighbours differ, and none is red.
fn color_of(number: u32) -> &'static str {
    ["36", "33", "35", "32", "34"][number as usize % 5]
}

/// Bytes in quotes, as text where they are some, in at most `most` columns (at least 4). What is cut off shows as `…`.
pub fn quoted(bytes: &[u8], most: usize) -> String {
    let mut text = String::from('"');
    let mut left = most - 3; // Two quotes and the mark.
    let seen = &bytes[..bytes.len().min(4 * most)]; // A column takes at most four bytes of UTF-8.
    let mut whole = seen.len() == bytes.len();
    let pieces = seen.utf8_chunks().flat_map(|chunk| {
        let characters = chunk.valid().chars().map(|c| match u8::try_from(c) {
            Ok(b'\'') => "'".into(),
            Ok(byte) if byte.is_ascii() => byte.escape_ascii().to_string(),
            _ => c.escape_debug().to_string(), // Also what would turn the direction of writing.
        });
        characters.chain(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")))
    });
    for piece in pieces {
        if width(&piece) > left {
            whole = false;
            break;
        }
        left -= width(&piece);
        text.push_str(&piece);
    }
    text.push_str(if whole { "\"" } else { "\"…" });
    text
}

/// Columns of a terminal. Two for what East Asian scripts and emoji take; good enough to align a diagram.
fn width(text: &str) -> usize {
    let wide = |c: char| {
        matches!(c as u32, 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f
            | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd)
    };
    text.chars().map(|c| if wide(c) { 2 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use super::*;

    /// A diagram on a pipe, with room for so many lines.
    fn diagram(left: u32) -> (Diagram, PipeReader) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let writer = NonBlockingWriter::new(&writer).expect("an outlet");
        // No line is earned in the time that a test takes.
        let as_of = Instant::now() + Duration::from_secs(3600);
        let diagram =
            Diagram { writer, color: false, left, as_of, skipped: 0, has_skipped_lines: false, line: String::new() };
        (diagram, reader)
    }

    fn read(diagram: Diagram, mut reader: PipeReader) -> Vec<String> {
        drop(diagram);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    const PREFIX: Prefix = Prefix { number: 7, time: None };

    fn bytes(diagram: &mut Diagram) {
        let arrow = Arrow { from: Side::Client, inferred: false, label: "PSH+ACK len 3" };
        diagram.arrow(PREFIX, arrow, "\"aa\"", "ESTABLISHED", Priority::Low);
    }

    #[test]
    fn arrows_are_aligned_and_the_longest_line_has_97_columns() {
        let (mut diagram, reader) = diagram(MAX_BURST_LINES);
        let prefix = Prefix { number: 1, time: Some(Duration::from_micros(1_500_000)) };
        let arrow = |from, inferred, label| Arrow { from, inferred, label };
        let meaning = "SYN-RECEIVED → ESTABLISHED";
        diagram.arrow(
            prefix,
            arrow(Side::Client, false, "PSH+ACK len 65536, 46 segments"),
            meaning,
            "ESTABLISHED",
            Priority::Low,
        );
        diagram.arrow(PREFIX, arrow(Side::Server, true, "ACK"), "", "", Priority::Low);
        let lines = read(diagram, reader);
        assert_eq!(
            lines,
            [
                "#1      1.500000  ── PSH+ACK len 65536, 46 segments ─►  SYN-RECEIVED → ESTABLISHED   ESTABLISHED",
                "#7                ◄╌ ACK ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌",
            ]
        );
        assert_eq!(lines[0].chars().count(), 97 - 1);
    }

    #[test]
    fn what_is_too_much_is_left_out_and_counted_and_room_is_kept_for_what_matters() {
        let (mut diagram, reader) = diagram(RESERVED_LINES + 2);
        (0..10).for_each(|_| bytes(&mut diagram));
        assert!(diagram.has_skipped_lines());
        diagram.remark(PREFIX, "the end");
        let lines = read(diagram, reader);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[2], "…     8 lines left out: too many to follow, or not read in time");
        assert!(lines[3].ends_with("the end"));
    }

    #[test]
    fn a_gap_lasts_until_it_is_worth_a_line() {
        let (mut diagram, reader) = diagram(RESERVED_LINES);
        bytes(&mut diagram);
        diagram.left = MAX_BURST_LINES - 1;
        bytes(&mut diagram);
        diagram.flush_skipped();
        diagram.left = MAX_BURST_LINES;
        diagram.flush_skipped();
        assert!(!diagram.has_skipped_lines());
        assert_eq!(read(diagram, reader), ["…     2 lines left out: too many to follow, or not read in time"]);
    }

    #[test]
    fn bytes_are_shown_as_text_where_they_are_text_and_cut_where_they_are_long() {
        for (bytes, shown) in [
            (&b"aa\n"[..], r#""aa\n""#),
            (b"it's \"so\"\\", r#""it's \"so\"\\""#),
            (b"\x00\x1b[2J\xff\xfe", r#""\x00\x1b[2J\xff\xfe""#),
            ("你好".as_bytes(), r#""你好""#),
            ("\u{202e}e\u{301}".as_bytes(), r#""\u{202e}e\u{301}""#),
            (&[b'x'; 24], r#""xxxxxxxxxxxxxxxxxxxxxxxx""#),
            (&[b'x'; 25], r#""xxxxxxxxxxxxxxxxxxxxxxxx"…"#),
            (&[b'x'; 70_000], r#""xxxxxxxxxxxxxxxxxxxxxxxx"…"#),
            ("一二三四五六七八九十一二三".as_bytes(), r#""一二三四五六七八九十一二"…"#),
            (&"你好".as_bytes()[..4], r#""你\xe5""#),
        ] {
            assert_eq!(quoted(bytes, MEANING_COLUMNS), shown);
            assert!(width(&quoted(bytes, MEANING_COLUMNS)) <= MEANING_COLUMNS);
        }
    }
}
