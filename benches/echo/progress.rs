//! Progress on standard error: a line that is rewritten on a terminal, else a line per scenario.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// The width that is assumed if the terminal does not report one.
const DEFAULT_COLUMNS: usize = 80;

/// How far the run is.
pub struct Progress {
    began: Instant,
    steps: usize,
    done: usize,
    /// The number of the current scenario, and how many there are.
    scenario: (usize, usize),
    is_terminal: bool,
}

impl Progress {
    /// Returns the beginning of a run of `steps` rounds in `scenarios` scenarios.
    pub fn new(began: Instant, scenarios: usize, steps: usize) -> Progress {
        Progress { began, steps, done: 0, scenario: (0, scenarios), is_terminal: io::stderr().is_terminal() }
    }

    /// Starts the next scenario.
    pub fn start_scenario(&mut self, name: &str) {
        self.scenario.0 += 1;
        if !self.is_terminal {
            self.print(&format!("{} {name}", self.prefix()));
        }
    }

    /// Starts the next round.
    pub fn step(&mut self, what: &str) {
        self.show(what);
        self.done += 1;
    }

    /// Leaves out rounds for lack of time.
    pub fn skip(&mut self, steps: usize) {
        self.done += steps;
    }

    /// Shows what is being done, on a terminal.
    pub fn show(&self, what: &str) {
        if self.is_terminal {
            let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
            let columns = if columns == 0 { DEFAULT_COLUMNS } else { columns };
            let line: String = format!("{} {what}", self.prefix()).chars().take(columns.saturating_sub(1)).collect();
            self.print(&format!("\r\x1b[K{line}"));
        }
    }

    /// Prints a warning or an error above the line of progress.
    pub fn warn(&self, text: &str) {
        self.clear();
        self.print(&format!("bench: {text}\n"));
    }

    /// Removes the line of progress.
    pub fn clear(&self) {
        if self.is_terminal {
            self.print("\r\x1b[K");
        }
    }

    fn prefix(&self) -> String {
        let elapsed = self.began.elapsed().as_secs_f64();
        let (scenario, scenarios) = self.scenario;
        let left = match self.done {
            0..3 => String::new(),
            done => format!(", about {:.0} s left", elapsed / done as f64 * self.steps.saturating_sub(done) as f64),
        };
        format!("[{scenario}/{scenarios}, {elapsed:.0} s{left}]")
    }

    /// Ignores errors: a run continues without a reader of its progress.
    fn print(&self, text: &str) {
        let end = if self.is_terminal || text.ends_with('\n') { "" } else { "\n" };
        let _ = write!(io::stderr(), "{text}{end}");
    }
}
