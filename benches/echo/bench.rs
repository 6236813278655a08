//! How a scenario is run: rounds, interleaved over the servers.

use std::thread;
use std::time::{Duration, Instant};

use crate::choice;
use crate::generator::bulk::BulkPlan;
use crate::generator::{Address, Clients, Pace, Plan, Result, Sample, churn};
use crate::progress::Progress;
use crate::results::{Idle, MAX_DISTURBANCE, Outcome, PerEcho, Round, Row};
use crate::scenarios::{Scenario, Work};
use crate::server::counter::{Attached, Counter};
use crate::server::{CoreTime, Cores, Cpu, Origin, Server, Spec};

/// How often a disturbed round may be repeated before its result is kept as it is.
const MAX_REPEATS: u32 = 2;

/// At most this part of a scenario's rounds is repeated: on a machine that is always busy, repeating gains nothing.
const MAX_REPEATED_PART: f64 = 0.5;

/// Settings of a run.
pub struct Bench {
    pub cores: Cores,
    pub counter: std::result::Result<Counter, String>,
    pub rounds: u32,
    /// The length of a round, if it was chosen by hand.
    pub window: Option<Duration>,
    /// The load before a round, if it was chosen by hand.
    pub warm_up: Option<Duration>,
    /// The server that ratios refer to, if it was chosen by hand.
    pub reference: Option<String>,
    /// Whether to leave out combinations that take long.
    pub is_brief: bool,
    pub began: Instant,
}

/// Times that are read at both ends of a window.
struct Reading {
    server: Option<Cpu>,
    core: Option<CoreTime>,
}

type Measured = Sample<Reading>;

/// The load of a scenario, ready to be applied.
struct Load {
    work: Work,
    warm_up: Duration,
    window: Duration,
}

impl Bench {
    /// Returns the servers that take part in a scenario.
    pub fn participants<'a>(&self, scenario: &Scenario, servers: &'a [Spec]) -> Vec<&'a Spec> {
        // The memory of a running server is known only with its process.
        let has_memory = |server: &Spec| !matches!(server.origin, Origin::Running(_, None));
        let is_idle = matches!(scenario.work, Work::Idle { .. });
        let mut chosen: Vec<&Spec> = servers
            .iter()
            .filter(|server| scenario.is_for(&server.name, self.is_brief))
            .filter(|server| !is_idle || has_memory(server))
            .collect();
        // Variants of echod are compared with echod; without it they would be all there is.
        if chosen.iter().all(|server| server.name.starts_with("echod-")) {
            chosen.clear();
        }
        chosen
    }

    /// Returns how many rounds a scenario has.
    pub fn rounds(&self, scenario: &Scenario) -> u32 {
        // Memory repeats almost to the byte.
        if matches!(scenario.work, Work::Idle { .. }) { self.rounds.div_ceil(5) } else { self.rounds }
    }

    fn load(&self, scenario: &Scenario) -> Load {
        let default = if cfg!(debug_assertions) { Duration::from_millis(50) } else { Duration::from_millis(300) };
        // Beside hundreds of streams, a ping can take 100 ms: a shorter window would hold only a few.
        let factor = if matches!(scenario.work, Work::BesideBulk { .. }) { 3.0 } else { 1.0 };
        let window = self.window.unwrap_or_else(|| default.mul_f64(factor));
        Load { work: scenario.work, warm_up: self.warm_up.unwrap_or(window / 10), window }
    }

    /// Runs all rounds of a scenario. After `until`, no round begins except the first.
    pub fn run(
        &self,
        scenario: Scenario,
        servers: &[Spec],
        until: Option<Instant>,
        progress: &mut Progress,
    ) -> Outcome {
        let participants = self.participants(&scenario, servers);
        let load = self.load(&scenario);
        let mut rows: Vec<Row> = participants.iter().map(|server| Row::new(&server.name)).collect();
        let is_over = || until.is_some_and(|until| Instant::now() > until);
        let rounds = self.rounds(&scenario);
        let mut repeats_left = (f64::from(rounds) * participants.len() as f64 * MAX_REPEATED_PART).ceil() as u32;
        for round in 0..rounds {
            if round > 0 && is_over() {
                progress.skip((rounds - round) as usize * participants.len());
                break;
            }
            for (position, index) in order(round as usize, participants.len()).into_iter().enumerate() {
                let (server, row) = (participants[index], &mut rows[index]);
                progress.step(&format!("{}, {}, round {} of {rounds}", scenario.name, server.name, round + 1));
                if row.failure.is_some() {
                    continue;
                }
                let measured = match load.work {
                    Work::Idle { connections } => self.hold(server, connections).map(|idle| row.idle.push(idle)),
                    _ => {
                        let max_repeats = if is_over() { 0 } else { repeats_left.min(MAX_REPEATS) };
                        self.round(server, &load, position, max_repeats).map(|round| {
                            repeats_left -= round.repeats;
                            row.rounds.push(round);
                        })
                    }
                };
                if let Err(error) = measured {
                    let failure = error.to_string();
                    progress.warn(&format!("{}, {}: {failure}", scenario.name, server.name));
                    row.failure = Some(failure);
                }
            }
        }
        if let Ok(counter) = self.counter
            && !matches!(load.work, Work::Idle { .. })
        {
            for (server, row) in participants.iter().zip(&mut rows) {
                progress.show(&format!("{}, {}, counting system calls", scenario.name, server.name));
                if row.failure.is_none() {
                    match self.count(server, &load, counter) {
                        Ok(counted) => row.counted = counted,
                        // The server has passed its rounds; only the figure is missing.
                        Err(error) => progress
                            .warn(&format!("{}, {}: system calls not counted: {error}", scenario.name, server.name)),
                    }
                }
            }
        }
        let reference = choice::reference(self.reference.as_deref(), &participants);
        Outcome { scenario, window: load.window, warm_up: load.warm_up, rows, reference }
    }

    /// Measures a fresh process; again, at most `max_repeats` times, if something disturbed it.
    fn round(&self, server: &Spec, load: &Load, position: usize, max_repeats: u32) -> Result<Round> {
        let mut repeats = 0;
        loop {
            let started = self.began.elapsed();
            let (sample, ()) = self.with_server(server, |running| self.apply(running, load, || Ok(()), |()| Ok(())))?;
            let cpu = sample.after.server.zip(sample.before.server).map(|(after, before)| after.since(before));
            let server_lost = sample
                .after
                .core
                .zip(sample.before.core)
                .zip(cpu)
                .map(|((after, before), cpu)| after.others_since(before, cpu.total));
            let round = Round {
                echoes: sample.echoes,
                bytes: sample.bytes,
                window: sample.window,
                latency: sample.latency,
                new_connections: sample.new_connections,
                lateness: sample.lateness,
                cpu,
                generator_lost: if self.cores.are_apart() { sample.lost } else { Duration::ZERO },
                server_lost: server_lost.unwrap_or_default(),
                started,
                position,
                repeats,
            };
            if round.disturbance() > MAX_DISTURBANCE && repeats < max_repeats {
                repeats += 1;
                continue;
            }
            return Ok(round);
        }
    }

    /// Starts a fresh process for `measure`. An error says how the process exited, if it has.
    fn with_server<T>(&self, spec: &Spec, measure: impl FnOnce(&Server) -> Result<T>) -> Result<T> {
        let mut server = Server::start(spec, &self.cores)?;
        // A server that has never closed a connection may pay for that later: glibc's malloc raises its mmap threshold
        // when the first large block is freed, which makes asyncio twice as fast.
        let _ = connect_and_close(&server.address); // A server that fails here fails below, too.
        measure(&server).map_err(|error| match server.exit_status() {
            Some(exit) => format!("{error} ({exit})").into(),
            None => error,
        })
    }

    /// Applies a load to a server. `attach` is called when all clients are connected, before the load starts; `detach` when
    /// it has ended, before the clients close.
    fn apply<A, D>(
        &self,
        server: &Server,
        load: &Load,
        attach: impl FnOnce() -> Result<A>,
        detach: impl FnOnce(A) -> Result<D>,
    ) -> Result<(Measured, D)> {
        let spin = self.cores.are_apart();
        let meter = || Reading { server: server.cpu(), core: self.cores.server_core_time() };
        let &Load { work, warm_up, window } = load;
        let (connections, message) = match work {
            Work::Closed { connections, message, .. } | Work::Open { connections, message, .. } => {
                (connections, message)
            }
            Work::BesideBulk { streams, .. } => (streams, 64),
            Work::Stream { connections } => (connections, 64),
            Work::Churn { lanes, message } => {
                let attached = attach()?;
                let sample = churn::churn(&server.address, lanes, message as u64, spin, (warm_up, window), meter)?;
                return Ok((sample, detach(attached)?));
            }
            Work::Idle { .. } => unreachable!("idle connections are measured by `hold`"),
        };
        let mut clients = Clients::new(message, spin)?;
        clients.connect(&server.address, connections)?;
        let attached = attach()?;
        let sample = match work {
            Work::Closed { in_flight, .. } => {
                clients.run(&Plan { pace: Pace::Closed { in_flight }, warm_up, window }, meter)?
            }
            Work::Open { rate, .. } => clients.run(&Plan { pace: Pace::Open { rate }, warm_up, window }, meter)?,
            Work::BesideBulk { message, in_flight, .. } => {
                let light = Some(server.address.clone());
                let message = message as u64;
                clients.run_bulk(&BulkPlan { message, in_flight: Some(in_flight), light, warm_up, window }, meter)?
            }
            _ => clients
                .run_bulk(&BulkPlan { message: 64 * 1024, in_flight: None, light: None, warm_up, window }, meter)?,
        };
        let detached = detach(attached)?;
        clients.finish()?;
        Ok((sample, detached))
    }

    /// Counts system calls and user instructions per echo.
    fn count(&self, server: &Spec, load: &Load, counter: Counter) -> Result<Option<PerEcho>> {
        let load = Load { work: load.work, warm_up: Duration::ZERO, window: load.window / 2 };
        self.with_server(server, |running| {
            if running.pids().is_empty() {
                return Ok(None);
            }
            // A server that forks has a process per connection by the time of attaching.
            let attach = || counter.attach(&running.pids());
            let (sample, count) = self.apply(running, &load, attach, Attached::detach)?;
            let echoes = sample.all_echoes as f64;
            if count.calls == 0 {
                return Err("the counter saw no system call".into());
            }
            Ok(Some(PerEcho {
                calls: count.calls as f64 / echoes,
                instructions: count.instructions.map(|instructions| instructions as f64 / echoes),
                user_part: count.user_part,
            }))
        })
    }

    /// Holds silent connections, and reads the server's memory.
    fn hold(&self, server: &Spec, connections: usize) -> Result<Idle> {
        self.with_server(server, |running| {
            let resident = || running.resident().ok_or("cannot read the server's memory from /proc");
            let cpu = || running.cpu().ok_or("cannot read the server's CPU time");
            let mut clients = Clients::new(64, self.cores.are_apart())?;
            // The first few pay for what exists once: buffers, the allocator, code that runs for the first time.
            let first = 64.min(connections / 2);
            clients.connect(&running.address, first)?;
            clients.echo_once()?;
            let base = resident()?;
            clients.connect(&running.address, connections)?;
            let silent = resident()?;
            let (before, since) = (cpu()?, Instant::now());
            thread::sleep(Duration::from_millis(300)); // Not a wait for an event: the idle time is what is measured.
            let asleep = (cpu()?.since(before).total, since.elapsed());
            clients.echo_once()?;
            let echoed = resident()?;
            clients.finish()?;
            Ok(Idle { connections: connections - first, base, silent, echoed, asleep })
        })
    }
}

/// Opens a connection, echoes one message and closes.
fn connect_and_close(address: &Address) -> Result<()> {
    let mut clients = Clients::new(64, false)?;
    clients.connect(address, 1)?;
    clients.finish()
}

/// Returns the order of the servers in a round: a balanced Latin square, in which each server follows each other server
/// equally often, so that what one leaves behind (caches, sockets in TIME-WAIT) does not always hit the same next one.
pub fn order(round: usize, servers: usize) -> Vec<usize> {
    // 0, 1, n-1, 2, n-2, …, shifted by one server per round (E. J. Williams, 1949).
    let base =
        (0..servers).map(|place| if place % 2 == 1 { place.div_ceil(2) } else { (servers - place / 2) % servers });
    let shifted = base.map(|server| (server + round) % servers);
    // With an odd number of servers, the square is balanced together with its mirror image.
    if servers % 2 == 1 && (round / servers.max(1)) % 2 == 1 { shifted.rev().collect() } else { shifted.collect() }
}
