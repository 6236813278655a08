//! `cargo bench`: what an echo costs and how long it takes, for echod and for other servers in the same run.
//!
//! Methodology: each server is a separate process on a core of its own (`server`). A generator on another core applies
//! a load to it and verifies every byte (`generator`). That is a round. Each round has a fresh process, and the servers
//! alternate, so that a disturbance of the machine affects all of them (`bench`). Reported is the median of the rounds,
//! with minimum and maximum; ratios are computed between rounds that ran next to each other, then their median is taken
//! (`results`). System calls are counted in a separate pass (`server::counter`). `report` prints the tables, and writes
//! every round to `target/bench/results.json`, and pictures.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing tables is the purpose of this program")]

mod bench;
mod choice;
mod generator;
mod options;
mod peers;
mod report;
mod results;
mod scenarios;
mod server;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bench::Bench;
use crate::generator::Result;
use crate::options::Options;
use crate::report::{Machine, json, svg, tables};
use crate::results::Outcome;
use crate::server::Cores;
use crate::server::counter::Counter;

fn main() -> ExitCode {
    // As a peer: the process contains nothing of the benchmark but its code.
    if let [_, serve, name] = &env::args().collect::<Vec<_>>()[..]
        && serve == "--serve"
    {
        let error = peers::serve(name).map_or_else(|| format!("no peer {name}"), |Err(error)| error.to_string());
        eprintln!("bench peer {name}: {error}");
        return ExitCode::FAILURE;
    }
    match Options::parse_arguments().map_err(Into::into).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Descriptors reserved for everything but connections.
const RESERVE: u64 = 200;

/// Runs the chosen scenarios on the chosen servers, and reports.
fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    let scenarios = choice::scenarios(options)?;
    let (servers, missing) = choice::servers(options)?;
    let bench = Bench {
        cores: Cores::choose()?,
        counter: Counter::find(),
        rounds: options.rounds.unwrap_or(if options.full { 11 } else { USUAL.0 }),
        window: options.seconds.unwrap_or(if options.full { Duration::from_secs(1) } else { USUAL.1 }),
        rate: options.rate,
        began,
    };
    // The default run ends within three minutes even on a busy machine: then it has fewer rounds.
    let in_time = !options.full && options.rounds.is_none() && options.seconds.is_none();
    let share = in_time.then(|| USUAL_TIME / scenarios.len() as u32);
    let most_connections = raise_descriptor_limit()?.saturating_sub(RESERVE) as usize;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (scenario, number) in scenarios.into_iter().zip(1..) {
        let scenario = scenario.capped(most_connections);
        let until = share.map(|share| began + share * number);
        let outcome = bench.run(scenario, &servers, &outcomes, until)?;
        if !outcome.rows.is_empty() {
            outcomes.push(outcome);
        }
    }
    bench.clear_progress();

    let machine = Machine::record(
        bench.cores.describe(),
        &bench.counter,
        &missing,
        bench.cores.are_apart().then(|| results::disturbance(&outcomes)).flatten(),
    );
    fs::create_dir_all(&options.output)?;
    let output = options.output.canonicalize()?;
    let mut written = vec![("results.json", json::all(&outcomes, &servers, &machine))];
    written.extend(svg::all(&outcomes, &machine));
    for (name, contents) in &written {
        fs::write(output.join(name), contents)?;
    }
    let names: Vec<&str> = written.iter().map(|(name, _)| *name).collect();
    // The files first: the reader of the tables may close the pipe.
    let mut stdout = io::stdout().lock();
    tables::print(&outcomes, &servers, &machine, &mut stdout)?;
    let seconds = began.elapsed().as_secs();
    writeln!(stdout, "\n{seconds} s. In {}: {}", output.display(), names.join(", "))?;
    Ok(())
}

/// Default rounds and their length: the usual scenarios end within three minutes. An unoptimized build
/// (`cargo test --benches`) only shows that everything works.
const USUAL: (u32, Duration) =
    if cfg!(debug_assertions) { (1, Duration::from_millis(50)) } else { (5, Duration::from_millis(400)) };

/// The time for the scenarios of the default run, divided evenly. On an idle machine they take less.
const USUAL_TIME: Duration = Duration::from_secs(160);

/// Raises the soft limit of descriptors to the hard limit, also for the servers, which inherit it. Returns it.
fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}
