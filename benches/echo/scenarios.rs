//! The loads that servers are measured under.

use std::fmt::Write;

/// One load, applied to each server in turn.
#[derive(Clone)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: String,
    /// The load.
    pub work: Work,
    /// Whether `cargo bench` runs it without `--full`.
    pub is_default: bool,
    /// The number of connections in [`Work`] before it was lowered to what the descriptor limit allows.
    pub lowered_from: Option<usize>,
}

/// The kinds of load.
#[derive(Clone, Copy, PartialEq)]
pub enum Work {
    /// Each connection keeps `in_flight` messages in flight.
    Closed { connections: usize, message: usize, in_flight: u32 },
    /// Messages are due at a fixed `rate` per second over all connections.
    Open { connections: usize, message: usize, rate: f64 },
    /// Connect, echo one message, FIN both ways; `lanes` connections at a time.
    Churn { lanes: usize, message: usize },
    /// Silent connections.
    Idle { connections: usize },
    /// Small messages and short connections, beside bulk streams of a closed loop.
    BesideBulk { streams: usize, message: usize, in_flight: u32 },
    /// Each connection sends as much as the kernel accepts, and receives at the same time.
    Stream { connections: usize },
}

/// Bytes of a bulk message.
const BULK_MESSAGE: usize = 256 * 1024;

/// Numbers of bulk streams.
const STREAMS: [usize; 3] = [8, 64, 300];

/// Low rates, at which polling for events costs CPU time.
const POLL_RATES: [f64; 3] = [1_000.0, 5_000.0, 20_000.0];

impl Scenario {
    /// Returns all scenarios, in the order in which they are run and printed. `streams` replaces the numbers of bulk
    /// streams.
    pub fn all(streams: Option<usize>) -> Vec<Scenario> {
        let closed = |connections, message, in_flight| Work::Closed { connections, message, in_flight };
        let open = |rate| Work::Open { connections: 50, message: 64, rate };
        let mut all = vec![
            Scenario::new("ping-pong", closed(1, 64, 1), true),
            Scenario::new("busy-poll", closed(1, 64, 1), true),
            Scenario::new("ten", closed(10, 64, 1), false),
            Scenario::new("fifty", closed(50, 64, 1), true),
            Scenario::new("two-hundred", closed(200, 64, 1), false),
            Scenario::new("thousand", closed(1000, 64, 1), true),
            Scenario::new("five-thousand", closed(5000, 64, 1), false),
            Scenario::new("pipelined", closed(50, 64, 16), true),
            Scenario::new("bulk", closed(4, 64 * 1024, 1), true),
            Scenario::new("stream", Work::Stream { connections: 4 }, true),
            Scenario::new("churn", Work::Churn { lanes: 16, message: 64 }, true),
            Scenario::new("open", open(25_000.0), true),
            Scenario::new("brisk", open(50_000.0), false),
        ];
        for rate in POLL_RATES {
            let work = Work::Open { connections: 1, message: 64, rate };
            all.push(Scenario::new(&format!("poll-{rate}"), work, false));
        }
        for &number in streams.as_ref().map_or(&STREAMS[..], std::slice::from_ref) {
            let work = Work::BesideBulk { streams: number, message: BULK_MESSAGE, in_flight: 4 };
            let is_default = number == 64 || streams.is_some();
            all.push(Scenario::new(&format!("beside-bulk-{number}"), work, is_default));
        }
        all.push(Scenario::new("idle", Work::Idle { connections: 10_000 }, true));
        all
    }

    /// Returns a scenario that is run in full size.
    pub fn new(name: &str, work: Work, is_default: bool) -> Scenario {
        Scenario { name: name.to_owned(), work, is_default, lowered_from: None }
    }

    /// Returns whether `name` is this scenario or its family: `poll` means `poll-1000` and the others.
    pub fn has_name(&self, name: &str) -> bool {
        let family = self.name.rsplit_once('-').filter(|(_, size)| size.bytes().all(|byte| byte.is_ascii_digit()));
        self.name == name || family.is_some_and(|(family, _)| family == name)
    }

    /// Describes the load as it is really run, for tables and pictures.
    pub fn title(&self) -> String {
        let connections =
            |count: usize| if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") };
        let mut title = match self.work {
            Work::Closed { connections: count, message, in_flight } => {
                let each = if count == 1 { "" } else { " each" };
                let messages = if in_flight == 1 { "one message" } else { &format!("{in_flight} messages") };
                format!("{}, {}, {messages} in flight{each}", connections(count), size(message))
            }
            Work::Open { connections: count, message, rate } => {
                format!("{}, {}, open loop, {rate} messages/s", connections(count), size(message))
            }
            Work::Churn { lanes, message } => {
                format!("connect, echo {}, FIN both ways; {lanes} at a time", size(message))
            }
            Work::Idle { connections: count } => format!("{count} silent connections"),
            Work::BesideBulk { streams, message, in_flight } => {
                let each = size(message).replace(" bytes", "-byte");
                format!("64-byte pings beside {streams} streams of {each} messages, {in_flight} in flight each")
            }
            Work::Stream { connections: count } => {
                format!("{}, both directions at once, as much as the kernel accepts", connections(count))
            }
        };
        if let Some(wanted) = self.lowered_from {
            write!(title, " (descriptor limit; wanted {wanted})").expect("writing to a String does not fail");
        }
        title
    }

    /// Returns whether the scenario says anything about a server. `is_brief` leaves out what takes long.
    pub fn is_for(&self, server: &str, is_brief: bool) -> bool {
        // Polling is compared with sleeping, and with a loop that never sleeps.
        let is_about_polling = self.name == "busy-poll" || self.has_name("poll");
        match server {
            "echod-50us" | "echod-0us" | "busy-epoll" => is_about_polling,
            "tokio" | "threads" | "tutorial" | "asyncio" if is_about_polling => false,
            // Their buffers matter only for large messages.
            "tokio-64k" | "threads-64k" => self.name == "bulk",
            // It reads until it would block, which an endless stream prevents, and its buffer grows without a limit.
            "tutorial" if matches!(self.work, Work::Stream { .. }) => false,
            // It answers only one message.
            "naive-python" => matches!(self.work, Work::Churn { .. }),
            "threads" | "tutorial" | "asyncio" if is_brief && self.has_name("beside-bulk") => false,
            // More than a thousand threads show nothing that a thousand do not.
            "threads" => self.connections() <= 1000 || matches!(self.work, Work::Idle { .. }),
            _ => true,
        }
    }

    /// Returns how many connections are open at the same time.
    pub fn connections(&self) -> usize {
        match self.work {
            Work::Closed { connections, .. }
            | Work::Open { connections, .. }
            | Work::Idle { connections }
            | Work::Stream { connections } => connections,
            Work::Churn { lanes, .. } => lanes,
            Work::BesideBulk { streams, .. } => streams + 2,
        }
    }

    /// Lowers the number of connections to `limit`. None if that leaves no connection.
    pub fn lowered_to(mut self, limit: usize) -> Option<Scenario> {
        let limit = if let Work::BesideBulk { .. } = self.work { limit.saturating_sub(2) } else { limit };
        let (Work::Closed { connections: count, .. }
        | Work::Open { connections: count, .. }
        | Work::Idle { connections: count }
        | Work::Stream { connections: count }
        | Work::Churn { lanes: count, .. }
        | Work::BesideBulk { streams: count, .. }) = &mut self.work;
        if *count > limit {
            self.lowered_from = Some(std::mem::replace(count, limit));
        }
        // Idle memory is the difference between two numbers of connections.
        let least = if let Work::Idle { .. } = self.work { 2 } else { 1 };
        (limit >= least).then_some(self)
    }
}

/// Formats a number of bytes.
fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1024 * 1024 && bytes.is_multiple_of(1024 * 1024) => format!("{} MiB", bytes / 1024 / 1024),
        _ if bytes >= 1024 && bytes.is_multiple_of(1024) => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} bytes"),
    }
}
