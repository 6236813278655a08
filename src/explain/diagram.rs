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
use crate::explain::time::now;

/// The sustained limit of lines per second: more than a reader can follow, and less than 1 % of a processor (a line costs some
/// 5 µs, most of it in write(2)).
const MAX_LINES_PER_SECOND: u32 = 1000;

/// The maximum number of lines printed at once after a quiet period: half a millisecond of work.
const MAX_BURST_LINES: u32 = 100;

/// How many of these lines are reserved for more important ones, so that a bulk transfer hides only its own middle and not how
/// other connections begin and end.
const RESERVED_LINES: u32 = 30;

/// The width of a line in columns: what fits into a column of text in rendered documentation, with room to spare in a terminal of
/// 100 columns.
pub const LINE_COLUMNS: usize = 85;

/// The width of the beginning of a line: the number of the connection and the time.
const PREFIX_COLUMNS: usize = 17;

/// The width of an arrow: `PSH+ACK len 65536 ×46` and six columns of line and head.
const ARROW_COLUMNS: usize = 27;

/// The width of an arrow's meaning: the longest state transition, or bytes. The state in the kernel fits after it.
pub const MEANING_COLUMNS: usize = 26;

const _: () = assert!(PREFIX_COLUMNS + ARROW_COLUMNS + 2 + MEANING_COLUMNS + 2 + "ESTABLISHED".len() == LINE_COLUMNS);

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
    /// It sums up many others.
    Medium,
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
            refilled_at: now(),
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
        let label_columns = ARROW_COLUMNS - 5;
        // Lengths of eight digits, with a large --buffer-size, leave no room for the flags.
        let label = arrow.label;
        let label = if width(label) > label_columns { label.trim_start_matches("PSH+ACK ") } else { label };
        let fill = label_columns.saturating_sub(width(label));
        let drawn = format!("{tail}{dash} {label} {}{head}", dash.repeat(fill));
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

    /// Prints a remark with [`Priority::High`] in the place of an arrow, on several lines if it is too long for one.
    pub fn remark(&mut self, mut prefix: Prefix, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            if !self.take_line(Priority::High) {
                return;
            }
            let (line, remaining) = split_line(rest, LINE_COLUMNS - PREFIX_COLUMNS);
            self.begin(prefix);
            self.line.push_str(line);
            self.finish();
            (prefix.time, rest) = (None, remaining);
        }
    }

    /// Returns whether there is budget for a line of this priority. Callers check it before they do expensive work for a line.
    pub fn has_room(&mut self, priority: Priority) -> bool {
        self.refill();
        let needed = match priority {
            Priority::High => 1,
            Priority::Medium => RESERVED_LINES,
            Priority::Low if self.skipped == 0 => RESERVED_LINES + 1,
            Priority::Low => MAX_BURST_LINES, // A gap needs a line of its own, so let it grow.
        };
        self.left >= needed
    }

    /// Counts a line that the budget did not allow.
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
        let number = format!("#{}", prefix.number);
        self.paint(color_of(prefix.number), &number);
        // The two share the columns: a million connections leave room for a time of a day.
        let columns = PREFIX_COLUMNS.saturating_sub(number.len() + 2);
        let _ = match prefix.time {
            Some(time) => write!(self.line, "{:>columns$}  ", seconds(time, columns)),
            None => write!(self.line, "{:columns$}  ", ""),
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
        let now = now();
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

/// Formats a time in seconds: to the microsecond, or with fewer decimals if it would fill all of `columns`.
fn seconds(time: Duration, columns: usize) -> String {
    let digits = time.as_secs().checked_ilog10().map_or(1, |log| log as usize + 1);
    let decimals = columns.saturating_sub(digits + 2).min(6);
    format!("{:.decimals$}", time.as_secs_f64())
}

/// Splits a text after at most `columns` columns, at a space if there is one.
fn split_line(text: &str, columns: usize) -> (&str, &str) {
    if width(text) <= columns {
        return (text, "");
    }
    let mut end = 0;
    let mut used = 0;
    let mut space = None;
    for (index, c) in text.char_indices() {
        used += char_width(c);
        if used > columns + usize::from(c == ' ') {
            break;
        }
        if c == ' ' {
            space = Some(index);
        }
        end = index + c.len_utf8();
    }
    let end = space.unwrap_or(end);
    (&text[..end], text[end..].trim_start())
}

/// Returns the width of a text in columns of a terminal: two for East Asian scripts and emoji. Good enough to align a diagram.
fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    let is_wide = matches!(c as u32, 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd);
    if is_wide { 2 } else { 1 }
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
        let refilled_at = now() + Duration::from_secs(3600);
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
    fn arrows_are_aligned_and_lines_have_at_most_85_columns() {
        let (mut diagram, reader) = diagram(MAX_BURST_LINES);
        let at = |number, seconds| Prefix { number, time: Some(Duration::from_secs_f64(seconds)) };
        let arrow = |from, inferred, label| Arrow { from, inferred, label };
        let meaning = "SYN-RECEIVED → ESTABLISHED";
        for (prefix, label) in [
            (at(1, 1.5), "PSH+ACK len 65536 ×46"),
            (at(123_456, 654.321), "PSH+ACK len 3"),
            (at(1_000_000, 86_400.25), "PSH+ACK len 16777216 ×11587"),
        ] {
            diagram.arrow(prefix, arrow(Side::Client, false, label), meaning, "ESTABLISHED", Priority::Low);
        }
        diagram.arrow(PREFIX, arrow(Side::Server, true, "ACK"), "", "", Priority::Low);
        let lines = read(diagram, reader);
        assert_eq!(
            lines,
            [
                "#1     1.500000  ── PSH+ACK len 65536 ×46 ─►  SYN-RECEIVED → ESTABLISHED  ESTABLISHED",
                "#123456 654.321  ── PSH+ACK len 3 ─────────►  SYN-RECEIVED → ESTABLISHED  ESTABLISHED",
                "#1000000  86400  ── len 16777216 ×11587 ───►  SYN-RECEIVED → ESTABLISHED  ESTABLISHED",
                "#7               ◄╌ ACK ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌",
            ]
        );
        assert!(lines[..3].iter().all(|line| width(line) == LINE_COLUMNS));
    }

    #[test]
    fn long_remark_is_split_between_words() {
        let (mut diagram, reader) = diagram(MAX_BURST_LINES);
        let words = "window ".repeat(20);
        diagram.remark(Prefix { number: 7, time: Some(Duration::ZERO) }, words.trim_end());
        diagram.remark(PREFIX, &"x".repeat(70));
        let lines = read(diagram, reader);
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| width(line) <= LINE_COLUMNS), "{lines:?}");
        assert_eq!(lines[1], format!("#7{}{}", " ".repeat(15), "window ".repeat(9).trim_end()));
        assert_eq!(lines[3].trim_end_matches('x').len(), PREFIX_COLUMNS);
        assert_eq!(lines[3].len(), LINE_COLUMNS);
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
            (&[b'x'; 23], r#""xxxxxxxxxxxxxxxxxxxxxxx""#),
            (&[b'x'; 24], r#""xxxxxxxxxxxxxxxxxxxxxxx"…"#),
            (&[b'x'; 70_000], r#""xxxxxxxxxxxxxxxxxxxxxxx"…"#),
            ("一二三四五六七八九十一二".as_bytes(), r#""一二三四五六七八九十一"…"#),
            (&"你好".as_bytes()[..4], r#""你\xe5""#),
        ] {
            assert_eq!(quoted(bytes, MEANING_COLUMNS), shown);
            assert!(width(&quoted(bytes, MEANING_COLUMNS)) <= MEANING_COLUMNS);
        }
    }
}
