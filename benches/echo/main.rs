//! `cargo bench`: what an echo costs and how long it takes, for echod and for other servers in the same run.
//!
//! Methodology: each server is a separate process on a core of its own (`server`). A generator on another core applies
//! a load to it and verifies every byte (`generator`). That is a round. Each round has a fresh process, and the servers
//! alternate in a balanced order, so that a disturbance of the machine affects all of them; a disturbed round is repeated
//! (`bench`). Reported is the median of the rounds with its confidence interval; ratios are computed between rounds that
//! ran next to each other, then their median is taken (`results`). System calls are counted in a separate pass
//! (`server::counter`). `report` prints the tables, and writes every round to `target/bench`, after each scenario.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing tables is the purpose of this program")]

mod baseline;
mod bench;
mod choice;
mod generator;
mod options;
mod peers;
mod progress;
mod report;
mod results;
mod scenarios;
mod server;

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::baseline::Baseline;
use crate::bench::Bench;
use crate::generator::Result;
use crate::options::Options;
use crate::progress::Progress;
use crate::report::{Machine, comparison, files, tables};
use crate::results::Outcome;
use crate::scenarios::Scenario;
use crate::server::counter::Counter;
use crate::server::{Cores, Spec, process};

/// The exit status for a wrong option, as for those that clap rejects.
const WRONG_OPTION: u8 = 2;

/// The exit status if this build is slower than the baseline by more than `--fail-slower` allows.
const SLOWER: u8 = 3;

/// Descriptors reserved for everything but connections.
const RESERVE: u64 = 200;

/// Default rounds: the usual scenarios end within three minutes. An unoptimized build (`cargo test --benches`) only shows
/// that everything works.
const DEFAULT_ROUNDS: u32 = if cfg!(debug_assertions) { 1 } else { 5 };

/// Rounds of a full run, and of a comparison of builds, whose intervals need more of them.
const FULL_ROUNDS: u32 = 11;

/// The time for the scenarios of the default run, divided evenly. On an idle machine they take less.
const DEFAULT_TIME: Duration = Duration::from_secs(135);

/// The load before each round if there are servers of unknown make, which may compile code at run time.
const COMMAND_WARM_UP: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().collect();
    match &arguments[..] {
        // Becomes the server that the arguments name: nothing of the benchmark stays in its process.
        [_, launch, rest @ ..] if launch == process::LAUNCH => return process::launch(rest),
        // Becomes a peer: the process contains nothing of the benchmark but its code.
        [_, serve, name] | [_, _, serve, name] if serve == "--serve" => {
            return peers::serve_or_fail(&name.to_string_lossy());
        }
        _ => {}
    }
    let options = Options::parse_arguments();
    let plan = match Plan::of(&options) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(WRONG_OPTION);
        }
    };
    match run(&options, plan) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is run. An error is a wrong option.
struct Plan {
    scenarios: Vec<Scenario>,
    servers: Vec<Spec>,
    /// Servers that could not be measured, and why.
    missing: Vec<String>,
    baseline: Option<Baseline>,
    cores: Cores,
}

impl Plan {
    fn of(options: &Options) -> Result<Plan> {
        let scenarios = choice::scenarios(options)?;
        let load = |name: &String| Baseline::load(&options.output, name);
        let baseline = options.baseline.as_ref().map(load).transpose()?;
        let (servers, missing) = choice::servers(options, baseline.as_ref())?;
        Ok(Plan { scenarios, servers, missing, baseline, cores: Cores::choose(options.cores)? })
    }
}

/// Runs the scenarios on the servers, and reports. Returns the exit status.
fn run(options: &Options, plan: Plan) -> Result<ExitCode> {
    let Plan { scenarios, mut servers, missing, baseline, cores } = plan;
    let began = Instant::now();
    choice::find_running(&mut servers)?;
    let bench = Bench {
        cores,
        counter: Counter::find(),
        rounds: options.rounds.unwrap_or(if options.full || baseline.is_some() { FULL_ROUNDS } else { DEFAULT_ROUNDS }),
        window: options.seconds.or(options.full.then_some(Duration::from_secs(1))),
        warm_up: options.warm_up.or((!options.command.is_empty()).then_some(COMMAND_WARM_UP)),
        reference: options.reference.clone(),
        is_brief: !options.full && options.peers.is_empty() && options.scenario.is_empty() && options.filter.is_none(),
        began,
    };
    let machine = Machine::record(bench.cores.describe(), &bench.counter, &missing);
    let output = files::Output::create(&options.output)?;
    kill_servers_on_signals(output.directory().display().to_string())?;
    // The default run ends within three minutes even on a busy machine: then it has fewer rounds.
    let in_time = !options.full && options.rounds.is_none() && options.seconds.is_none();
    let share = in_time.then(|| DEFAULT_TIME / scenarios.len() as u32);
    let limit = raise_descriptor_limit()?;
    let max_connections = limit.saturating_sub(RESERVE) as usize;
    let steps = |scenario| bench.participants(scenario, &servers).len() * bench.rounds(scenario) as usize;
    let mut progress = Progress::new(began, scenarios.len(), scenarios.iter().map(steps).sum());

    let mut outcomes: Vec<Outcome> = Vec::new();
    for (scenario, number) in scenarios.into_iter().zip(1..) {
        progress.start_scenario(&scenario.name);
        let (name, wanted) = (scenario.name.clone(), scenario.connections());
        let Some(scenario) = scenario.lowered_to(max_connections) else {
            progress.warn(&format!("{name}: not run: {limit} descriptors leave too few for connections (ulimit -n)"));
            continue;
        };
        if scenario.lowered_from.is_some() {
            let connections = scenario.connections();
            progress.warn(&format!(
                "{name}: {connections} instead of {wanted} connections: {limit} descriptors allow no more (ulimit -n)"
            ));
        }
        let until = share.map(|share| began + share * number);
        let outcome = bench.run(scenario, &servers, until, &mut progress);
        if !outcome.rows.is_empty() {
            outcomes.push(outcome);
            output.write(&outcomes, &servers, &machine, (None, &[]))?;
        }
    }
    progress.clear();
    if outcomes.is_empty() {
        return Err("nothing was measured: no server takes part in the chosen scenarios".into());
    }
    let mut stdout = io::stdout().lock();
    tables::print(&outcomes, &servers, &machine, &mut stdout)?;
    let comparisons = baseline.as_ref().map(|baseline| baseline::compare(&outcomes, baseline)).unwrap_or_default();
    if let Some(Baseline { name, .. }) = &baseline {
        output.write(&outcomes, &servers, &machine, (Some(name), &comparisons))?;
        comparison::print(&comparisons, name, &mut stdout)?;
    }
    if let Some(name) = &options.save_baseline {
        baseline::save(output.directory(), name).map_err(|error| format!("cannot save baseline '{name}': {error}"))?;
        writeln!(stdout, "\nsaved as baseline '{name}'")?;
    }
    let seconds = began.elapsed().as_secs();
    writeln!(stdout, "\n{seconds} s. Results: {}/index.html", output.directory().display())?;
    let has_failed = outcomes.iter().flat_map(|outcome| &outcome.rows).any(|row| row.failure.is_some());
    let is_slower = options.fail_slower.is_some_and(|percent| {
        let is_worse = |it: &baseline::Comparison| {
            it.change.is_some_and(|change| change.is_worse_by(percent / 100.0, it.metric.lower_is_better))
        };
        comparisons.iter().any(is_worse)
    });
    Ok(match (has_failed, is_slower) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(SLOWER),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// On SIGINT, SIGTERM and SIGHUP, kills the servers and exits with the signal's status. Files of finished scenarios stay.
fn kill_servers_on_signals(directory: String) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            process::kill_all();
            // If the message cannot be written, the exit status remains.
            let _ = writeln!(io::stderr(), "\nbench: interrupted; finished scenarios are in {directory}");
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Raises the soft limit of descriptors to the hard limit, also for the servers, which inherit it. Returns it.
fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Reads a file that may not exist on this kernel.
fn read_or_empty(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
