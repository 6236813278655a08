//! The loads that servers are measured under.

/// One load, applied to each server in turn.
#[derive(Clone)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its description, above its table.
    pub title: &'static str,
    /// The load.
    pub work: Work,
    /// Whether `cargo bench` runs it without `--full`.
    pub usual: bool,
}

/// The kinds of load.
#[derive(Clone, Copy)]
pub enum Work {
    /// Each connection keeps `in_flight` messages in flight.
    Closed { connections: usize, message: usize, in_flight: u32 },
    /// Messages are due at a fixed rate over all connections.
    Open { connections: usize, message: usize, rate: Rate },
    /// Connect, echo one message, FIN both ways.
    Churn { lanes: usize, message: usize },
    /// Silent connections.
    Idle { connections: usize },
}

/// How the rate of an open loop is chosen.
#[derive(Clone, Copy)]
pub enum Rate {
    /// Messages per second.
    PerSecond(f64),
    /// This part of what bare-epoll echoes in scenario `fifty` of the same run.
    OfBareEpoll(f64),
}

impl Scenario {
    /// Returns all scenarios, in the order in which they are run and printed.
    pub fn all() -> Vec<Scenario> {
        let scenario = |name, title, work| Scenario { name, title, work, usual: true };
        let closed = |connections, message, in_flight| Work::Closed { connections, message, in_flight };
        let open = |rate| Work::Open { connections: 50, message: 64, rate };
        let mut all = vec![
            scenario("ping-pong", "1 connection, 64 bytes, one message in flight", closed(1, 64, 1)),
            scenario("busy-poll", "1 connection, 64 bytes; echod awake for 50 µs after each event", closed(1, 64, 1)),
            scenario("ten", "10 connections, 64 bytes, one message in flight each", closed(10, 64, 1)),
            scenario("fifty", "50 connections, 64 bytes, one message in flight each", closed(50, 64, 1)),
            scenario("two-hundred", "200 connections, 64 bytes, one message in flight each", closed(200, 64, 1)),
            scenario("thousand", "1000 connections, 64 bytes, one message in flight each", closed(1000, 64, 1)),
            scenario("five-thousand", "5000 connections, 64 bytes, one message in flight each", closed(5000, 64, 1)),
            scenario("pipelined", "50 connections, 64 bytes, 16 messages in flight each", closed(50, 64, 16)),
            scenario("bulk", "4 connections, 64 KiB messages, one in flight each", closed(4, 64 * 1024, 1)),
            scenario(
                "churn",
                "connect, echo 64 bytes, FIN both ways; 16 at a time",
                Work::Churn { lanes: 16, message: 64 },
            ),
            scenario(
                "open",
                "50 connections, 64 bytes, open loop at half of bare-epoll's rate",
                open(Rate::OfBareEpoll(0.5)),
            ),
            scenario(
                "brisk",
                "50 connections, 64 bytes, open loop at 80 % of bare-epoll's rate",
                open(Rate::OfBareEpoll(0.8)),
            ),
            scenario("paced", "50 connections, 64 bytes, open loop", open(Rate::PerSecond(20_000.0))),
            scenario("idle", "silent connections", Work::Idle { connections: 10_000 }),
        ];
        for scenario in &mut all {
            scenario.usual = !["ten", "two-hundred", "five-thousand", "brisk", "paced"].contains(&scenario.name);
        }
        all
    }

    /// Returns whether the scenario says anything about a server.
    pub fn is_for(&self, server: &str) -> bool {
        match (self.name, server) {
            // Polling is compared with sleeping, and with a loop that never sleeps.
            ("busy-poll" | "paced", "bare-epoll" | "echod" | "remote") => true,
            ("busy-poll" | "paced", busy) => busy.contains("busy"),
            (_, busy) if busy.contains("busy") => false,
            // It answers only one message.
            (name, "naive-python") => name == "churn",
            // More than a thousand threads show nothing that a thousand do not.
            (_, "threads") => self.connections() <= 1000 || matches!(self.work, Work::Idle { .. }),
            _ => true,
        }
    }

    /// Returns how many connections are open at the same time.
    pub fn connections(&self) -> usize {
        match self.work {
            Work::Closed { connections, .. } | Work::Open { connections, .. } | Work::Idle { connections } => {
                connections
            }
            Work::Churn { lanes, .. } => lanes,
        }
    }

    /// Returns the same scenario with at most `most` connections.
    pub fn capped(mut self, most: usize) -> Scenario {
        match &mut self.work {
            Work::Closed { connections, .. } | Work::Open { connections, .. } | Work::Idle { connections } => {
                *connections = most.min(*connections);
            }
            Work::Churn { .. } => {}
        }
        self
    }
}
