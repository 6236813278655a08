//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::generator::Address;
use crate::peers::{self, ladder};
use crate::scenarios::Scenario;

/// Measures echod and other echo servers, and verifies every byte.
#[derive(Parser)]
#[command(
    override_usage = "cargo bench [FILTER] -- [OPTIONS]",
    max_term_width = 100,
    next_line_help = false,
    disable_version_flag = true
)]
pub struct Options {
    /// Only scenarios whose name contains this
    #[arg(value_name = "FILTER", hide_default_value = true)]
    pub filter: Option<String>,
    /// Only these scenarios, separated by commas [default: those without an asterisk]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// Run every scenario, 11 rounds of a second each (about half an hour)
    #[arg(long)]
    pub full: bool,

    /// Only these peers besides echod, separated by commas; `ladder` for all rungs, `none` for echod alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Servers")]
    pub peers: Vec<String>,
    /// Also measure any server: a fresh process each round, with {port} or {socket} replaced. Repeatable
    #[arg(long, value_name = "LABEL=CMD {port}", value_parser = Labeled::parse, help_heading = "Servers")]
    pub command: Vec<Labeled>,
    /// Measure the server running at PORT, HOST:PORT, unix:PATH or unix:@NAME instead of echod
    #[arg(long, value_name = "ADDRESS", value_parser = addresses, help_heading = "Servers")]
    pub connect: Option<Addresses>,
    /// The process of that server, for its CPU time, memory and system calls, children included
    #[arg(long, value_name = "PID", requires = "connect", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Servers")]
    pub pid: Option<u32>,
    /// Also measure another build of echod, as `other`
    #[arg(long, value_name = "PATH", help_heading = "Servers")]
    pub other: Option<PathBuf>,
    /// Compute ratios to this server [default: bare-epoll, or else the first]
    #[arg(long, value_name = "NAME", help_heading = "Servers")]
    pub reference: Option<String>,

    /// Number of connections, in a scenario of your own if none is named
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Load")]
    pub connections: Option<u32>,
    /// Bytes per message
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16 * 1024 * 1024), help_heading = "Load")]
    pub message: Option<u32>,
    /// Messages in flight per connection (closed loop)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Load")]
    pub in_flight: Option<u32>,
    /// Messages per second over all connections (open loop)
    #[arg(long, value_name = "N", value_parser = rate, help_heading = "Load")]
    pub rate: Option<f64>,
    /// Bulk streams in beside-bulk [default: 8, 64 and 300]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Load")]
    pub streams: Option<u32>,

    /// Fresh processes of each server to measure [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Measurement")]
    pub rounds: Option<u32>,
    /// How long to measure each process [default: 0.3; beside-bulk: 0.9]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Measurement")]
    pub seconds: Option<Duration>,
    /// Load before each measurement [default: a tenth of it; 0.3 with --command]
    #[arg(long, value_name = "SECONDS", value_parser = warm_up, help_heading = "Measurement")]
    pub warm_up: Option<Duration>,
    /// Cores to pin to [default: the first and the last]
    #[arg(long, value_name = "SERVER,GENERATOR", value_parser = cores, help_heading = "Measurement")]
    pub cores: Option<(usize, usize)>,

    /// Save this build of echod and its results for later comparison
    #[arg(long, value_name = "NAME", value_parser = label, help_heading = "Comparison of builds")]
    pub save_baseline: Option<String>,
    /// Compare with a saved build, side by side; 11 rounds and no peers unless chosen
    #[arg(long, value_name = "NAME", value_parser = label, help_heading = "Comparison of builds")]
    pub baseline: Option<String>,
    /// Exit with status 3 if a figure is certainly worse by more than this
    #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "baseline", help_heading = "Comparison of builds")]
    pub fail_slower: Option<f64>,

    /// Directory for the results [default: target/bench]
    #[arg(long, value_name = "DIRECTORY", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../bench"), hide_default_value = true, help_heading = "Results")]
    pub output: PathBuf,
    /// Passed by `cargo bench` to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// Parses this process's arguments. Prints help or an error and exits if that is what they ask for.
    pub fn parse_arguments() -> Options {
        let matches = Options::command().after_help(catalogue()).get_matches();
        Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Returns whether the load of a scenario is chosen by hand.
    pub fn chooses_load(&self) -> bool {
        self.connections.is_some() || self.message.is_some() || self.in_flight.is_some()
    }
}

/// A server's command line and its name.
#[derive(Clone, Debug)]
pub struct Labeled {
    pub label: String,
    pub words: Vec<String>,
}

/// The longest label that fits into a table.
const MAX_LABEL_CHARS: usize = 12;

impl Labeled {
    fn parse(text: &str) -> Result<Labeled, String> {
        let (label, command) = text.split_once('=').ok_or("expected LABEL=COMMAND")?;
        let words = shlex::split(command).ok_or("unbalanced quotes")?;
        if words.is_empty() {
            return Err("missing command after the label".to_owned());
        }
        if !words.iter().any(|word| word.contains("{port}") || word.contains("{socket}")) {
            return Err("the command contains neither {port} nor {socket}".to_owned());
        }
        Ok(Labeled { label: self::label(label)?, words })
    }
}

/// Parses a name that fits into a table, a file name and a style sheet.
fn label(text: &str) -> Result<String, String> {
    let is_allowed = |letter: char| letter.is_alphanumeric() || "-_.+".contains(letter);
    if text.is_empty() || text.starts_with('.') || !text.chars().all(is_allowed) {
        return Err(format!("invalid name '{text}': use letters, digits and -_.+"));
    }
    if text.chars().count() > MAX_LABEL_CHARS {
        return Err(format!("'{text}' is longer than {MAX_LABEL_CHARS} characters"));
    }
    Ok(text.to_owned())
}

/// The addresses of one server, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Addresses(pub Vec<Address>);

fn addresses(text: &str) -> Result<Addresses, String> {
    Address::parse(text).map(Addresses)
}

fn number(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() { Ok(number) } else { Err("not a finite number".to_owned()) }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = number(text)?;
    if (1.0..=1e7).contains(&rate) { Ok(rate) } else { Err("must be between 1 and 10000000".to_owned()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = number(text)?;
    if (0.0..=1000.0).contains(&percent) { Ok(percent) } else { Err("must be between 0 and 1000".to_owned()) }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if (0.01..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be between 0.01 and 3600".to_owned())
    }
}

fn warm_up(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if (0.0..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be between 0 and 3600".to_owned())
    }
}

fn cores(text: &str) -> Result<(usize, usize), String> {
    let (server, generator) = text.split_once(',').ok_or("expected two core numbers, e.g. 0,1")?;
    let core = |text: &str| text.trim().parse().map_err(|_| format!("invalid core number '{text}'"));
    Ok((core(server)?, core(generator)?))
}

/// Lists scenarios and peers, for `--help`.
fn catalogue() -> String {
    let mut text = "Scenarios (* only with --full, or by name):\n".to_owned();
    for scenario in Scenario::all(None) {
        let mark = if scenario.is_default { ' ' } else { '*' };
        text += &format!("  {:16}{mark} {}\n", scenario.name, scenario.title());
    }
    text += "\nPeers:\n";
    for (name, about) in peers::all() {
        text += &format!("  {name:16}  {about}\n");
    }
    text += &format!("  {:16}  rung-1 to rung-6, which are measured only by name\n", ladder::GROUP);
    text +=
        "\nExit status: 0; 1 if a server failed or sent a wrong byte; 2 for a wrong option; 3 with --fail-slower.\n";
    text
}
