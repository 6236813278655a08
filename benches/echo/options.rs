//! The command line.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::peers;
use crate::scenarios::Scenario;

/// Measures echod and other echo servers on loopback, and verifies every byte.
#[derive(Parser)]
#[command(override_usage = "cargo bench -- [OPTIONS]", max_term_width = 100)]
pub struct Options {
    /// Run every scenario, 11 rounds of a second each (about half an hour)
    #[arg(long)]
    pub full: bool,
    /// Only these scenarios, separated by commas [default: those without an asterisk]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// Only these peers besides echod, separated by commas; `none` for echod alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Fresh processes of each server to measure [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// How long to measure each process [default: 0.4]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Messages per second of the open loops, instead of a part of bare-epoll's
    #[arg(long, value_name = "N")]
    pub rate: Option<f64>,
    /// Measure the server running at this address instead of echod; peers only if named
    #[arg(long, value_name = "ADDRESS", value_parser = resolve)]
    pub connect: Option<SocketAddr>,
    /// Also measure another build of echod, as `other`
    #[arg(long, value_name = "PATH")]
    pub other: Option<PathBuf>,
    /// Directory for results.json and the pictures
    #[arg(long, value_name = "DIRECTORY", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../bench"), hide_default_value = true)]
    pub output: PathBuf,
    /// Passed by `cargo bench` to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration < Duration::from_millis(10) { Err("must be at least 0.01".to_owned()) } else { Ok(duration) }
}

fn resolve(text: &str) -> std::result::Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "no address found".to_owned())
}

impl Options {
    /// Parses this process's arguments. Prints help or an error and exits if that is what they ask for.
    pub fn parse_arguments() -> Result<Options, clap::Error> {
        let matches = Options::command().after_help(catalogue()).get_matches();
        Options::from_arg_matches(&matches)
    }
}

/// Lists scenarios and peers, for `--help`.
fn catalogue() -> String {
    let mut text = "Scenarios (* only with --full, or by name):\n".to_owned();
    for Scenario { name, title, usual, .. } in Scenario::all() {
        let mark = if usual { ' ' } else { '*' };
        text += &format!("  {name:14}{mark} {title}\n");
    }
    text += "\nPeers:\n";
    for (name, about) in peers::ALL {
        text += &format!("  {name:14}  {about}\n");
    }
    text
}
