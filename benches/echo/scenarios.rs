//! What is measured, and of whom.

/// One load, put on every server in turn.
#[derive(Clone)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is, over its table.
    pub title: &'static str,
    /// The load.
    pub work: Work,
    /// Whether `cargo bench` runs it without `--full`.
    pub usual: bool,
}

/// The kinds of load.
#[derive(Clone, Copy)]
pub enum Work {
    /// Each connection keeps so many messages under way.
    Closed { connections: usize, message: usize, in_flight: u32 },
    /// Messages are due at a fixed rate, over all connections.
    Open { connections: usize, message: usize, rate: Rate },
    /// Connect, echo one message, FIN both ways.
    Churn { lanes: usize, message: usize },
    /// Connections that say nothing.
    Idle { connections: usize },
}

/// How a fixed rate is found.
#[derive(Clone, Copy)]
pub enum Rate {
    /// So many messages per second.
    PerSecond(f64),
    /// This part of what the floor echoes in scenario `fifty` of the same run.
    OfFloor(f64),
}

impl Scenario {
    /// All of them, in the order in which they are run and told.
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
                "50 connections, 64 bytes, open loop at half of the floor's rate",
                open(Rate::OfFloor(0.5)),
            ),
            scenario(
                "brisk",
                "50 connections, 64 bytes, open loop at 80 % of the floor's rate",
                open(Rate::OfFloor(0.8)),
            ),
            scenario("paced", "50 connections, 64 bytes, open loop", open(Rate::PerSecond(20_000.0))),
            scenario("idle", "connections that say nothing", Work::Idle { connections: 10_000 }),
        ];
        for scenario in &mut all {
            scenario.usual = !["ten", "two-hundred", "five-thousand", "brisk", "paced"].contains(&scenario.name);
        }
        all
    }

    /// Whether a server has something to show here.
    pub fn is_for(&self, server: &str) -> bool {
        match (self.name, server) {
            // What polling costs and brings shows against sleeping, and against the floor that never sleeps.
            ("busy-poll" | "paced", "floor" | "echod" | "connected") => true,
            ("busy-poll" | "paced", busy) => busy.ends_with("busy"),
            (_, busy) if busy.ends_with("busy") => false,
            // It answers one message.
            (name, "ten-lines") => name == "churn",
            // More than a thousand threads say nothing that a thousand do not.
            (_, "threads") => self.connections() <= 1000 || matches!(self.work, Work::Idle { .. }),
            _ => true,
        }
    }

    /// How many connections stand at the same time.
    pub fn connections(&self) -> usize {
        match self.work {
            Work::Closed { connections, .. } | Work::Open { connections, .. } | Work::Idle { connections } => {
                connections
            }
            Work::Churn { lanes, .. } => lanes,
        }
    }

    /// The same with no more connections than `most`.
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
