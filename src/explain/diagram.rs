//! Line-based rendering of a sequence diagram in a terminal.
//!
//! Nothing here knows TCP. It is about columns, colors and the line budget: lines beyond what a reader could follow are skipped
//! and counted, so that printing never slows down the daemon.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use std::{env, mem};

use crate::daemon::output::NonBlockingWriter;

/// The sustained limit of lines per second: more than a reader can follow, and less than 1 % of a processor (a line costs some
/// 5 µs, most of it in write(2)).
const MAX_LINES_PER_SECOND: u32 = 1000;

/// The maximum number of lines printed at once after a quiet period: half a millisecond of work.
const MAX_BURST_LINES: u32 = 100;

/// How many of these lines are reserved for [`Priority::High`], so that a bulk transfer hides only its own middle and not how
/// other connections begin and end.
const RESERVED_LINES: u32 = 30;

/// The width of an arrow in columns.
const ARROW_COLUMNS: usize = 36;

/// The width of an arrow's meaning in columns: a state transition, or bytes. With the longest state after it, a line has 97
/// columns.
pub const MEANING_COLUMNS: usize = 27;

/// The sequence diagram of all connections, on one output.
#[derive(Debug)]
pub struct Diagram {
    writer: NonBlockingWriter,
    color: bool,
    /// How many lines may be written now, and when this was computed.
    left: u32,
    refilled_at: Instant,
    /// Lines skipped since the last one that was written.
    skipped: u64,
    /// Whether some were skipped for lack of budget and their number has not been printed yet.
    has_skipped_lines: bool,
    line: String,
}

/// The end of a connection at which an arrow starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Drawn on the left; its arrows point to the right.
    Client,
    /// Drawn on the right; its arrows point to the left.
    Server,
}

/// An arrow with its label.
#[derive(Clone, Copy, Debug)]
pub struct Arrow<'a> {
    /// Where it starts.
    pub from: Side,
    /// Whether it is drawn dashed: no system call has shown it, but it must have happened.
    pub inferred: bool,
    /// The text on the arrow.
    pub label: &'a str,
}

/// The beginning of a line: its connection and its time.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    /// The number of the connection.
    pub number: u32,
    /// The time since accept(2). `None`: unknown.
    pub time: Option<Duration>,
}

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// It is one of many.
    Low,
    /// The diagram cannot be understood without it.
    High,
}

impl Diagram {
    /// Creates a diagram on this descriptor, in color if it is a terminal that supports it (<https://no-color.org>).
    pub fn new<T: AsFd + IsTerminal>(shared: T) -> io::Result<Diagram> {
        let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = shared.is_terminal() && unset("NO_COLOR") && !dumb;
        let writer = NonBlockingWriter::new(shared)?;
        Ok(Diagram {
            writer,
            color,
            left: MAX_BURST_LINES,
            refilled_at: Instant::now(),
            skipped: 0,
            has_skipped_lines: false,
            line: String::new(),
        })
    }

    /// Prints a line that does not belong to a connection.
    pub fn heading(&mut self, text: &str) {
        if self.take_line(Priority::High) {
            self.paint(DIM, text);
            self.finish();
        }
    }

    /// Prints an arrow, its meaning, and the state of the socket in the kernel.
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

    /// Prints a remark in the place of an arrow.
    pub fn remark(&mut self, prefix: Prefix, text: &str) {
        if self.take_line(Priority::High) {
            self.begin(prefix);
            self.line.push_str(text);
            self.finish();
        }
    }

    /// Returns whether there is budget for a line of this priority. Callers check it before they do expensive work for a line.
    pub fn has_room(&mut self, priority: Priority) -> bool {
        self.refill();
        let needed = match priority {
            Priority::High => 1,
            Priority::Low if self.skipped == 0 => RESERVED_LINES + 1,
            Priority::Low => MAX_BURST_LINES, // A gap needs a line of its own, so let it grow.
        };
        self.left >= needed
    }

    /// Counts a line for which there was no budget.
    pub fn skip_line(&mut self) {
        self.skipped += 1;
        self.has_skipped_lines = true;
    }

    /// Returns whether lines were skipped for lack of budget and their number has not been printed yet.
    pub fn has_skipped_lines(&self) -> bool {
        self.has_skipped_lines
    }

    /// Prints the number of skipped lines, if the budget is full again.
    pub fn flush_skipped(&mut self) {
        self.refill();
        if self.has_skipped_lines && self.left == MAX_BURST_LINES {
            self.left -= 1;
            self.print_skipped();
        }
    }

    /// Prints the number of skipped lines, if there are any.
    pub fn print_skipped(&mut self) {
        self.has_skipped_lines = false;
        if self.skipped > 0 {
            let skipped = mem::take(&mut self.skipped);
            self.paint(
                DIM,
                &format!("…     {skipped} lines omitted (output too fast, or the reader of stdout is too slow)"),
            );
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

    /// Takes a line from the budget. Returns false if there is none left; then the line is counted as skipped, and the count is
    /// printed before the next line.
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
        let earned =
            now.saturating_duration_since(self.refilled_at).as_millis() * u128::from(MAX_LINES_PER_SECOND) / 1000;
        if earned > 0 {
            self.left = (u128::from(self.left) + earned).min(u128::from(MAX_BURST_LINES)) as u32;
            self.refilled_at = now;
        }
    }

    fn finish(&mut self) {
        if !self.write() {
            self.skipped += 1;
        }
    }

    /// Writes the line. Returns whether the output accepted it.
    fn write(&mut self) -> bool {
        let is_written = self.writer.write_line(self.line.as_bytes());
        self.line.clear();
        is_written
    }
}

const DIM: &str = "2";
const RED: &str = "1;31";

/// Returns the color of a connection. Consecutive ones differ, and none is red.
fn color_of(number: u32) -> &'static str {
    ["36", "33", "35", "32", "34"][number as usize % 5]
}

/// Returns the bytes in quotes, as text if they are text, in at most `max` columns (at least 4). `…` marks that the end is cut
/// off.
pub fn quoted(bytes: &[u8], max: usize) -> String {
    let mut text = String::from('"');
    let mut left = max - 3; // Two quotes and the mark.
    let seen = &bytes[..bytes.len().min(4 * max)]; // A column needs at most four bytes of UTF-8.
    let mut whole = seen.len() == bytes.len();
    let pieces = seen.utf8_chunks().flat_map(|chunk| {
        let characters = chunk.valid().chars().map(|c| match u8::try_from(c) {
            Ok(b'\'') => "'".into(),
            Ok(byte) if byte.is_ascii() => byte.escape_ascii().to_string(),
            _ => c.escape_debug().to_string(), // Including marks that change the writing direction.
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

/// Returns the width of a text in columns of a terminal: two for East Asian scripts and emoji. Good enough to align a diagram.
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

    /// Returns a diagram on a pipe with a budget of `left` lines, and its reader.
    fn diagram(left: u32) -> (Diagram, PipeReader) {
        let (reader, writer) = io::pipe().expect("pipe");
        let writer = NonBlockingWriter::new(&writer).expect("writer");
        // The budget does not grow while a test runs.
        let refilled_at = Instant::now() + Duration::from_secs(3600);
        let diagram = Diagram {
            writer,
            color: false,
            left,
            refilled_at,
            skipped: 0,
            has_skipped_lines: false,
            line: String::new(),
        };
        (diagram, reader)
    }

    fn read(diagram: Diagram, mut reader: PipeReader) -> Vec<String> {
        drop(diagram);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    const PREFIX: Prefix = Prefix { number: 7, time: None };

    fn bytes(diagram: &mut Diagram) {
        let arrow = Arrow { from: Side::Client, inferred: false, label: "PSH+ACK len 3" };
        diagram.arrow(PREFIX, arrow, "\"aa\"", "ESTABLISHED", Priority::Low);
    }

    #[test]
    fn arrows_are_aligned_and_lines_have_at_most_97_columns() {
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
    fn lines_beyond_the_budget_are_counted_and_important_ones_printed() {
        let (mut diagram, reader) = diagram(RESERVED_LINES + 2);
        (0..10).for_each(|_| bytes(&mut diagram));
        assert!(diagram.has_skipped_lines());
        diagram.remark(PREFIX, "the end");
        let lines = read(diagram, reader);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[2], "…     8 lines omitted (output too fast, or the reader of stdout is too slow)");
        assert!(lines[3].ends_with("the end"));
    }

    #[test]
    fn gap_is_printed_when_the_budget_is_full_again() {
        let (mut diagram, reader) = diagram(RESERVED_LINES);
        bytes(&mut diagram);
        diagram.left = MAX_BURST_LINES - 1;
        bytes(&mut diagram);
        diagram.flush_skipped();
        diagram.left = MAX_BURST_LINES;
        diagram.flush_skipped();
        assert!(!diagram.has_skipped_lines());
        assert_eq!(
            read(diagram, reader),
            ["…     2 lines omitted (output too fast, or the reader of stdout is too slow)"]
        );
    }

    #[test]
    fn bytes_are_quoted_as_text_and_cut_to_the_column() {
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
