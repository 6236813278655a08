//! `cargo bench`: what an echo costs, and how long it takes, beside other servers in the same run.
//!
//! How a figure comes about: each server is a process of its own on a core of its own (`server`). A generator
//! on another core puts a load on it and verifies every byte (`load`, `churn`). That is a round; each round
//! has a fresh process, and the servers take turns, so that what disturbs the machine disturbs all of them. Of the rounds the
//! median is told, with the least and the greatest; a ratio is taken between neighbours, then its median (`results`).
//! System calls are counted in a pass of its own (`calls`). Everything that was measured is in
//! `target/bench/results.json`, round by round.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod calls;
mod churn;
mod load;
mod pattern;
mod peers;
mod picture;
mod report;
mod results;
mod scenarios;
mod server;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use clap::{CommandFactory, FromArgMatches, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::calls::Counter;
use crate::load::{Clients, Pace, Plan, Result, Sample};
use crate::results::{Idle, Outcome, PerEcho, Round, Row, Spread};
use crate::scenarios::{Rate, Scenario, Work};
use crate::server::{Cores, Cpu, Origin, Server, Spec};

/// Measures echod beside other echo servers, on loopback, every byte verified.
#[derive(Parser)]
#[command(override_usage = "cargo bench -- [OPTIONS]", max_term_width = 100)]
struct Options {
    /// Run every scenario, 11 rounds of a second each (about half an hour)
    #[arg(long)]
    full: bool,
    /// Only these scenarios, separated by commas [default: those without an asterisk]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Only these peers beside echod, separated by commas; `none` for echod alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    peers: Vec<String>,
    /// How many fresh processes of each server are measured [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each is measured [default: 0.4]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Messages per second of the open loops, instead of a part of the floor's
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Measure the server that runs at this address, instead of echod; peers only where named
    #[arg(long, value_name = "ADDRESS", value_parser = resolve)]
    connect: Option<SocketAddr>,
    /// Measure another build of echod too, as `other`
    #[arg(long, value_name = "PATH")]
    other: Option<PathBuf>,
    /// Where results.json and the pictures go
    #[arg(long, value_name = "DIRECTORY", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../bench"), hide_default_value = true)]
    output: PathBuf,
    /// What `cargo bench` says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration < Duration::from_millis(10) { Err("less than 0.01 shows nothing".to_owned()) } else { Ok(duration) }
}

fn resolve(text: &str) -> std::result::Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "it has no address".to_owned())
}

fn main() -> ExitCode {
    // As a peer: nothing of a bench is in its process but the code.
    if let [_, serve, name] = &env::args().collect::<Vec<_>>()[..]
        && serve == "--serve"
    {
        let end = peers::serve(name).map_or_else(|| format!("no peer {name}"), |Err(error)| error.to_string());
        eprintln!("bench peer {name}: {end}");
        return ExitCode::FAILURE;
    }
    let matches = Options::command().after_help(catalogue()).get_matches();
    match Options::from_arg_matches(&matches).map_err(Into::into).and_then(|options| bench(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What can be chosen, for `--help`.
fn catalogue() -> String {
    let mut text = "Scenarios (* only with --full, or by name):\n".to_owned();
    for Scenario { name, title, usual, .. } in Scenario::all() {
        let mark = if usual { ' ' } else { '*' };
        text += &format!("  {name:14}{mark} {title}\n");
    }
    text += "\nPeers:\n";
    for (name, about) in PEERS {
        text += &format!("  {name:14}  {about}\n");
    }
    text
}

/// Descriptors that are kept for everything but connections.
const RESERVE: u64 = 200;

fn bench(options: &Options) -> Result<()> {
    let began = Instant::now();
    let scenarios = chosen_scenarios(options)?;
    let (servers, missing) = chosen_servers(options)?;
    let bench = Bench {
        cores: Cores::choose()?,
        counter: Counter::find(),
        rounds: options.rounds.unwrap_or(if options.full { 11 } else { USUAL.0 }),
        window: options.seconds.unwrap_or(if options.full { Duration::from_secs(1) } else { USUAL.1 }),
        rate: options.rate,
        began,
    };
    // The usual run ends within three minutes also where the machine is busy: then with fewer rounds.
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

    let machine = report::Machine::look(
        bench.cores.describe(),
        &bench.counter,
        &missing,
        bench.cores.are_apart().then(|| results::disturbance(&outcomes)).flatten(),
    );
    fs::create_dir_all(&options.output)?;
    let output = options.output.canonicalize()?;
    let mut written = vec![("results.json", report::json(&outcomes, &servers, &machine))];
    written.extend(picture::all(&outcomes, &machine));
    for (name, contents) in &written {
        fs::write(output.join(name), contents)?;
    }
    let names: Vec<&str> = written.iter().map(|(name, _)| *name).collect();
    // The files first: whoever reads the tables may stop reading.
    let mut stdout = io::stdout().lock();
    report::print_tables(&outcomes, &servers, &machine, &mut stdout)?;
    let seconds = began.elapsed().as_secs();
    writeln!(stdout, "\n{seconds} s. In {}: {}", output.display(), names.join(", "))?;
    Ok(())
}

/// Rounds and their length unless told otherwise: the usual scenarios end within three minutes. An unoptimised build
/// (`cargo test --benches`) only shows that everything works.
const USUAL: (u32, Duration) =
    if cfg!(debug_assertions) { (1, Duration::from_millis(50)) } else { (5, Duration::from_millis(400)) };

/// By when the scenarios of the usual run are to be through, evenly. Undisturbed they take less.
const USUAL_TIME: Duration = Duration::from_secs(160);

fn chosen_scenarios(options: &Options) -> Result<Vec<Scenario>> {
    let mut all = Scenario::all();
    if let Some(wrong) = options.scenario.iter().find(|name| !all.iter().any(|scenario| scenario.name == *name)) {
        return Err(
            format!("no scenario {wrong}; there are: {}", names(all.iter().map(|scenario| scenario.name))).into()
        );
    }
    all.retain(|scenario| match &options.scenario[..] {
        [] => options.full || scenario.usual,
        chosen => chosen.iter().any(|name| name == scenario.name),
    });
    Ok(all)
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// The peers that can be chosen, and what they are.
const PEERS: [(&str, &str); 7] = [
    ("floor", "a bare epoll loop, one shared buffer, no features: the least there is to do"),
    ("floor-busy", "the same, always awake: the most that polling can bring on this machine"),
    ("tokio", "current-thread runtime, a task and a 16 KiB buffer for each connection"),
    ("threads", "the standard library, a thread for each connection"),
    ("tutorial", "the loop that mio's tutorial leads to"),
    ("asyncio", "Python, asyncio streams"),
    ("ten-lines", "Python, the tutorial's server: one client at a time, one message, close"),
];

/// Who is measured, and what is missing and why.
fn chosen_servers(options: &Options) -> Result<(Vec<Spec>, Vec<String>)> {
    if let Some(wrong) =
        options.peers.iter().find(|name| *name != "none" && !PEERS.iter().any(|(peer, _)| peer == name))
    {
        return Err(format!("no peer {wrong}; there are: {}", names(PEERS.iter().map(|(name, _)| *name))).into());
    }
    let mut servers = Vec::new();
    let mut missing = Vec::new();
    let spec = |name: &str, about, command: &[&std::ffi::OsStr]| Spec {
        name: name.to_owned(),
        about,
        origin: Origin::Command(command.iter().map(|&word| word.to_owned()).collect()),
    };
    let itself = env::current_exe()?;
    let has_python =
        Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success());
    for (name, about) in PEERS {
        let chosen = match &options.peers[..] {
            [] => options.connect.is_none(),
            chosen => chosen.iter().any(|peer| peer == name),
        };
        let script = match name {
            "asyncio" => Some(include_str!("asyncio_echo.py")),
            "ten-lines" => Some(include_str!("ten_lines.py")),
            _ => None,
        };
        match script {
            _ if !chosen => {}
            Some(_) if !has_python => missing.push(format!("{name}: no python3 here")),
            Some(script) => servers.push(spec(name, about, &["python3".as_ref(), "-c".as_ref(), script.as_ref()])),
            None => servers.push(spec(name, about, &[itself.as_ref(), "--serve".as_ref(), name.as_ref()])),
        }
    }
    // Right behind the floor.
    let place = usize::from(servers.first().is_some_and(|first| first.name == "floor"));
    let echod = |name: &str, about, path: &Path, more: &[&str]| {
        let mut command: Vec<&std::ffi::OsStr> =
            vec![path.as_ref(), "-q".as_ref(), "--listen".as_ref(), "127.0.0.1:0".as_ref()];
        command.extend(more.iter().map(|word| -> &std::ffi::OsStr { word.as_ref() }));
        spec(name, about, &command)
    };
    let mut ours = Vec::new();
    match options.connect {
        Some(address) => {
            ours.push(Spec { name: "connected".to_owned(), about: "runs already", origin: Origin::Running(address) });
        }
        None => {
            let path = Path::new(env!("CARGO_BIN_EXE_echod"));
            ours.push(echod("echod", "this one", path, &[]));
            ours.push(echod("echod busy", "this one with --busy-poll 50us", path, &["--busy-poll", "50us"]));
        }
    }
    if let Some(path) = &options.other {
        ours.push(echod("other", "another build of it", path, &[]));
    }
    servers.splice(place..place, ours);
    Ok((servers, missing))
}

/// Takes all descriptors that we may have, for us and for the servers, which inherit the limit.
fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// How everything is run.
struct Bench {
    cores: Cores,
    counter: std::result::Result<Counter, String>,
    rounds: u32,
    window: Duration,
    rate: Option<f64>,
    began: Instant,
}

/// CPU times, read at both ends of a window.
struct Reading {
    server: Cpu,
    generator: Duration,
}

type Measured = Sample<Reading>;

impl Bench {
    /// All rounds of a scenario; those that would begin after `until` only where there was none yet.
    fn run(&self, scenario: Scenario, servers: &[Spec], before: &[Outcome], until: Option<Instant>) -> Result<Outcome> {
        let rate = match scenario.work {
            Work::Open { rate, .. } => Some(self.rate(rate, before)?),
            _ => None,
        };
        let who: Vec<&Spec> = servers
            .iter()
            .filter(|server| scenario.is_for(&server.name))
            // Memory is the process's, which we do not know of a server that runs already.
            .filter(|server| !matches!((scenario.work, &server.origin), (Work::Idle { .. }, Origin::Running(_))))
            .collect();
        let mut rows: Vec<Row> = who
            .iter()
            .map(|server| Row { server: server.name.clone(), rounds: Vec::new(), idle: Vec::new(), counted: None })
            .collect();
        // Memory repeats to the byte or nearly so.
        let rounds = if matches!(scenario.work, Work::Idle { .. }) { self.rounds.div_ceil(5) } else { self.rounds };
        for round in 0..rounds {
            if round > 0 && until.is_some_and(|until| Instant::now() > until) {
                break;
            }
            for turn in 0..who.len() {
                // Each begins a round in its turn: whatever follows from the order hits all.
                let turn = (turn + round as usize) % who.len();
                let (server, row) = (who[turn], &mut rows[turn]);
                let place = format!("{}, {}, round {} of {rounds}", server.name, scenario.name, round + 1);
                self.progress(&place);
                let measured = self.with_server(server, |running| match scenario.work {
                    Work::Idle { connections } => {
                        row.idle.push(self.hold(running, connections)?);
                        Ok(())
                    }
                    work => {
                        let sample = self.load(running, work, rate, self.window / 10, self.window, || Ok(()))?.0;
                        row.rounds.push(Round {
                            echoes: sample.echoes,
                            window: sample.window,
                            cpu: running.pid().map(|_| sample.after.server.since(sample.before.server)),
                            generator: sample.after.generator.saturating_sub(sample.before.generator),
                            latency: sample.latency,
                        });
                        Ok(())
                    }
                });
                measured.map_err(|error| format!("{place}: {error}"))?;
            }
        }
        if let Ok(counter) = self.counter
            && !matches!(scenario.work, Work::Idle { .. })
        {
            for (server, row) in who.iter().zip(&mut rows) {
                let place = format!("{}, {}, counting system calls", server.name, scenario.name);
                self.progress(&place);
                let counted = self.with_server(server, |running| self.count(running, scenario.work, rate, counter));
                row.counted = counted.map_err(|error| format!("{place}: {error}"))?;
            }
        }
        Ok(Outcome { scenario, rate, window: self.window, rows })
    }

    /// Messages per second in an open loop.
    fn rate(&self, rate: Rate, before: &[Outcome]) -> Result<f64> {
        let part = match (self.rate, rate) {
            (Some(rate), _) | (None, Rate::PerSecond(rate)) => return Ok(rate),
            (None, Rate::OfFloor(part)) => part,
        };
        let floor = before
            .iter()
            .filter(|outcome| outcome.scenario.name == "fifty")
            .flat_map(|outcome| &outcome.rows)
            .find(|row| row.server == "floor")
            .and_then(|row| row.spread(|round| Some(round.rate())));
        let floor = match floor {
            Some(Spread { median, .. }) => median,
            None => {
                self.progress("floor, to find the rate");
                let command = vec![env::current_exe()?.into(), OsString::from("--serve"), OsString::from("floor")];
                let floor = Spec { name: "floor".to_owned(), about: "", origin: Origin::Command(command) };
                let fifty = Work::Closed { connections: 50, message: 64, in_flight: 1 };
                let sample = self.with_server(&floor, |running| {
                    Ok(self.load(running, fifty, None, self.window / 10, self.window, || Ok(()))?.0)
                })?;
                sample.echoes as f64 / sample.window.as_secs_f64()
            }
        };
        Ok((floor * part).round())
    }

    /// A fresh process, and what became of it where something fails.
    fn with_server<T>(&self, spec: &Spec, measure: impl FnOnce(&Server) -> Result<T>) -> Result<T> {
        let mut server = Server::start(spec, &self.cores)?;
        measure(&server).map_err(|error| match server.fate() {
            Some(fate) => format!("{error} ({fate})").into(),
            None => error,
        })
    }

    /// Puts a load on a server. `ready` is called when the connections stand and nothing moves yet.
    fn load<T>(
        &self,
        server: &Server,
        work: Work,
        rate: Option<f64>,
        warm_up: Duration,
        window: Duration,
        ready: impl FnOnce() -> Result<T>,
    ) -> Result<(Measured, T)> {
        let spin = self.cores.are_apart();
        let meter = || Reading { server: server.cpu(), generator: server::own_cpu() };
        let (connections, message, pace) = match work {
            Work::Closed { connections, message, in_flight } => (connections, message, Pace::Closed { in_flight }),
            Work::Open { connections, message, .. } => {
                (connections, message, Pace::Open { rate: rate.expect("an open loop has one") })
            }
            Work::Churn { lanes, message } => {
                let ready = ready()?;
                return Ok((
                    churn::churn(server.address, lanes, message as u64, spin, (warm_up, window), meter)?,
                    ready,
                ));
            }
            Work::Idle { .. } => unreachable!("idle connections are no load"),
        };
        let mut clients = Clients::new(message, spin)?;
        clients.connect(server.address, connections)?;
        let ready = ready()?;
        let sample = clients.run(&Plan { pace, warm_up, window }, meter)?;
        clients.finish()?;
        Ok((sample, ready))
    }

    /// System calls and user instructions for one echo.
    fn count(&self, server: &Server, work: Work, rate: Option<f64>, counter: Counter) -> Result<Option<PerEcho>> {
        let Some(pid) = server.pid() else { return Ok(None) };
        let (sample, attached) =
            self.load(server, work, rate, Duration::ZERO, self.window / 2, || counter.attach(pid))?;
        let count = attached.detach()?;
        let echoes = sample.all_echoes as f64;
        Ok(Some(PerEcho {
            calls: count.calls as f64 / echoes,
            instructions: count.instructions.map(|instructions| instructions as f64 / echoes),
            user_part: count.user_part,
        }))
    }

    /// Holds connections that say nothing, and reads the server's memory.
    fn hold(&self, server: &Server, connections: usize) -> Result<Idle> {
        let resident = || server.resident().ok_or("cannot read the server's memory from /proc");
        let mut clients = Clients::new(64, self.cores.are_apart())?;
        // The first few pay for what is there once: buffers, allocator, code that is first run now.
        let first = 64.min(connections / 2);
        clients.connect(server.address, first)?;
        clients.say_once()?;
        let base = resident()?;
        clients.connect(server.address, connections)?;
        let silent = resident()?;
        let (cpu, since) = (server.cpu(), Instant::now());
        thread::sleep(Duration::from_millis(300)); // Nothing is waited for: this is what is measured.
        let asleep = (server.cpu().since(cpu).total, since.elapsed());
        clients.say_once()?;
        let echoed = resident()?;
        clients.finish()?;
        Ok(Idle { connections: connections - first, base, silent, echoed, asleep })
    }

    /// Where we are, on a terminal.
    fn progress(&self, place: &str) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{:4.0} s  {place}", self.began.elapsed().as_secs_f64());
            let _ = io::stderr().flush();
        }
    }

    fn clear_progress(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
