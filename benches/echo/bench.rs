//! How a scenario is run: rounds, interleaved over the servers.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::generator::{Clients, Pace, Plan, Result, Sample, churn};
use crate::results::{Idle, Outcome, PerEcho, Round, Row, Spread};
use crate::scenarios::{Rate, Scenario, Work};
use crate::server::counter::Counter;
use crate::server::{Cores, Cpu, Origin, Server, Spec, own_cpu};

/// Settings of a run.
pub struct Bench {
    pub cores: Cores,
    pub counter: std::result::Result<Counter, String>,
    pub rounds: u32,
    pub window: Duration,
    pub rate: Option<f64>,
    pub began: Instant,
}

/// CPU times, read at both ends of a window.
struct Reading {
    server: Cpu,
    generator: Duration,
}

type Measured = Sample<Reading>;

impl Bench {
    /// Runs all rounds of a scenario. After `until`, no round begins except the first.
    pub fn run(
        &self,
        scenario: Scenario,
        servers: &[Spec],
        before: &[Outcome],
        until: Option<Instant>,
    ) -> Result<Outcome> {
        let rate = match scenario.work {
            Work::Open { rate, .. } => Some(self.rate(rate, before)?),
            _ => None,
        };
        let participants: Vec<&Spec> = servers
            .iter()
            .filter(|server| scenario.is_for(&server.name))
            // The process of a running server is unknown, and so is its memory.
            .filter(|server| !matches!((scenario.work, &server.origin), (Work::Idle { .. }, Origin::Running(_))))
            .collect();
        let mut rows: Vec<Row> = participants
            .iter()
            .map(|server| Row { server: server.name.clone(), rounds: Vec::new(), idle: Vec::new(), counted: None })
            .collect();
        // Memory repeats almost to the byte.
        let rounds = if matches!(scenario.work, Work::Idle { .. }) { self.rounds.div_ceil(5) } else { self.rounds };
        for round in 0..rounds {
            if round > 0 && until.is_some_and(|until| Instant::now() > until) {
                break;
            }
            for position in 0..participants.len() {
                // Each server is first in some rounds, so that the order affects all of them.
                let index = (position + round as usize) % participants.len();
                let (server, row) = (participants[index], &mut rows[index]);
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
            for (server, row) in participants.iter().zip(&mut rows) {
                let place = format!("{}, {}, counting system calls", server.name, scenario.name);
                self.progress(&place);
                let counted = self.with_server(server, |running| self.count(running, scenario.work, rate, counter));
                row.counted = counted.map_err(|error| format!("{place}: {error}"))?;
            }
        }
        Ok(Outcome { scenario, rate, window: self.window, rows })
    }

    /// Returns the rate of an open loop.
    fn rate(&self, rate: Rate, before: &[Outcome]) -> Result<f64> {
        let part = match (self.rate, rate) {
            (Some(rate), _) | (None, Rate::PerSecond(rate)) => return Ok(rate),
            (None, Rate::OfBareEpoll(part)) => part,
        };
        let reference = before
            .iter()
            .filter(|outcome| outcome.scenario.name == "fifty")
            .flat_map(|outcome| &outcome.rows)
            .find(|row| row.server == "bare-epoll")
            .and_then(|row| row.spread(|round| Some(round.rate())));
        let reference = match reference {
            Some(Spread { median, .. }) => median,
            None => {
                self.progress("bare-epoll, to find the rate");
                let command = vec![env::current_exe()?.into(), OsString::from("--serve"), OsString::from("bare-epoll")];
                let reference = Spec { name: "bare-epoll".to_owned(), about: "", origin: Origin::Command(command) };
                let fifty = Work::Closed { connections: 50, message: 64, in_flight: 1 };
                let sample = self.with_server(&reference, |running| {
                    Ok(self.load(running, fifty, None, self.window / 10, self.window, || Ok(()))?.0)
                })?;
                sample.echoes as f64 / sample.window.as_secs_f64()
            }
        };
        Ok((reference * part).round())
    }

    /// Starts a fresh process for `measure`. An error says how the process exited, if it has.
    fn with_server<T>(&self, spec: &Spec, measure: impl FnOnce(&Server) -> Result<T>) -> Result<T> {
        let mut server = Server::start(spec, &self.cores)?;
        measure(&server).map_err(|error| match server.exit_status() {
            Some(exit) => format!("{error} ({exit})").into(),
            None => error,
        })
    }

    /// Applies a load to a server. `ready` is called when all clients are connected, before the load starts.
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
        let meter = || Reading { server: server.cpu(), generator: own_cpu() };
        let (connections, message, pace) = match work {
            Work::Closed { connections, message, in_flight } => (connections, message, Pace::Closed { in_flight }),
            Work::Open { connections, message, .. } => {
                (connections, message, Pace::Open { rate: rate.expect("an open loop has a rate") })
            }
            Work::Churn { lanes, message } => {
                let ready = ready()?;
                return Ok((
                    churn::churn(server.address, lanes, message as u64, spin, (warm_up, window), meter)?,
                    ready,
                ));
            }
            Work::Idle { .. } => unreachable!("idle connections are measured by `hold`"),
        };
        let mut clients = Clients::new(message, spin)?;
        clients.connect(server.address, connections)?;
        let ready = ready()?;
        let sample = clients.run(&Plan { pace, warm_up, window }, meter)?;
        clients.finish()?;
        Ok((sample, ready))
    }

    /// Counts system calls and user instructions per echo.
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

    /// Holds silent connections, and reads the server's memory.
    fn hold(&self, server: &Server, connections: usize) -> Result<Idle> {
        let resident = || server.resident().ok_or("cannot read the server's memory from /proc");
        let mut clients = Clients::new(64, self.cores.are_apart())?;
        // The first few pay for what exists once: buffers, the allocator, code that runs for the first time.
        let first = 64.min(connections / 2);
        clients.connect(server.address, first)?;
        clients.echo_once()?;
        let base = resident()?;
        clients.connect(server.address, connections)?;
        let silent = resident()?;
        let (cpu, since) = (server.cpu(), Instant::now());
        thread::sleep(Duration::from_millis(300)); // Not a wait for an event: the idle time is what is measured.
        let asleep = (server.cpu().since(cpu).total, since.elapsed());
        clients.echo_once()?;
        let echoed = resident()?;
        clients.finish()?;
        Ok(Idle { connections: connections - first, base, silent, echoed, asleep })
    }

    /// Prints a line of progress on a terminal.
    fn progress(&self, place: &str) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{:4.0} s  {place}", self.began.elapsed().as_secs_f64());
            let _ = io::stderr().flush();
        }
    }

    /// Removes the line of progress.
    pub fn clear_progress(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
