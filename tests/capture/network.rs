//! Two network namespaces joined by a virtual cable (veth), a capture on it, and segments as tshark reads them.
//!
//! Needs root, `ip`, `tcpdump` and `tshark`. If one of them is missing, a test prints so and passes; with
//! `ECHOD_REQUIRE_TOOLS=1`, as in CI, it fails.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fmt, process, thread};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::support::{DaemonBuilder, Directory, eventually, has_program, skip_missing};

/// The addresses of the server and the client.
pub const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";

/// A port without a listener. A connection that is refused there marks the end of a capture.
const CLOSED_PORT: u16 = 9;

/// Two hosts and the cable between them. Removed when dropped.
pub struct Network {
    number: u32,
}

impl Network {
    /// Creates the network. Returns `None`, after printing why, if something it needs is missing.
    pub fn new() -> Option<Network> {
        let missing = ["ip", "tcpdump", "tshark"].into_iter().filter(|name| !has_program(name)).collect::<Vec<_>>();
        let reason = if !missing.is_empty() {
            missing.join(", ")
        } else if !rustix::process::geteuid().is_root() {
            "root, to create network namespaces".to_owned()
        } else {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let network = Network { number: NUMBER.fetch_add(1, Ordering::Relaxed) };
            match network.build() {
                Ok(()) => return Some(network),
                Err(error) => format!("network namespaces ({error})"),
            }
        };
        skip_missing(&reason);
        None
    }

    fn build(&self) -> Result<(), String> {
        let (server, client) = (self.name("server"), self.name("client"));
        ip(&format!("netns add {server}"))?;
        ip(&format!("netns add {client}"))?;
        ip(&format!("-n {server} link add cable type veth peer name cable netns {client}"))?;
        for (name, address) in [(&server, SERVER), (&client, CLIENT)] {
            ip(&format!("-n {name} address add {address}/24 dev cable"))?;
            ip(&format!("-n {name} link set lo up"))?;
            // Segments as they would be on a wire, not joined as for a network card that splits them (TSO).
            ip(&format!("-n {name} link set cable gso_max_segs 1 up"))?;
        }
        Ok(())
    }

    fn name(&self, host: &str) -> String {
        format!("echod-{}-{}-{host}", process::id(), self.number)
    }

    /// Makes a daemon run on the server's host.
    pub fn on_server(&self, start: DaemonBuilder) -> DaemonBuilder {
        start.through(&["ip", "netns", "exec", &self.name("server")])
    }

    /// Returns a command that runs a program on the client's host.
    pub fn client_command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name("client"), program]);
        command
    }

    /// Runs `work` on the client's host. Sockets that it opens stay there.
    #[track_caller]
    pub fn on_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name("client"))).expect("namespace");
        let moved = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns(2)");
            work()
        };
        thread::scope(|scope| scope.spawn(moved).join().expect("no panic"))
    }

    /// Starts a capture at the server's end of the cable.
    #[track_caller]
    pub fn capture(&self) -> Capture<'_> {
        let directory = Directory::new();
        let file = directory.join("capture.pcap");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name("server"), "tcpdump", "-i", "cable", "-U", "--immediate-mode"]);
        command.args(["-Z", "root", "-w"]).arg(&file).arg("tcp").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("tcpdump");
        let mut log = String::new();
        let mut stderr = BufReader::new(child.stderr.take().expect("pipe"));
        while !log.contains("listening on") {
            assert!(stderr.read_line(&mut log).expect("output of tcpdump") > 0, "tcpdump: {log}");
        }
        thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        Capture { network: self, child, file, _directory: directory }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in ["server", "client"] {
            let _ = ip(&format!("netns delete {}", self.name(host)));
        }
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {}", message.trim())) }
}

/// A running capture.
pub struct Capture<'a> {
    network: &'a Network,
    child: Child,
    file: PathBuf,
    _directory: Directory,
}

impl Capture<'_> {
    /// Ends the capture. Returns all segments so far between this port of the server and its clients.
    #[track_caller]
    pub fn finish(mut self, port: u16) -> Vec<Segment> {
        // One more connection as a marker: when it shows in the file, so does everything before it.
        let marker: SocketAddr = format!("{SERVER}:{CLOSED_PORT}").parse().expect("address");
        self.network.on_client(|| std::net::TcpStream::connect(marker)).expect_err("the port should be closed");
        let segments = eventually("the marker is in the capture", || {
            let segments = self.read();
            let ended =
                segments.iter().any(|(ports, segment)| ports.0 == CLOSED_PORT && segment.flags.contains(&"RST"));
            ended.then_some(segments)
        });
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("kill(2)");
        self.child.wait().expect("wait(2)");
        let ours = segments.into_iter().filter(|(ports, _)| ports.0 == port || ports.1 == port);
        ours.map(|(ports, segment)| Segment {
            from: if ports.0 == port { Side::Server } else { Side::Client },
            ..segment
        })
        .collect()
    }

    fn read(&self) -> Vec<((u16, u16), Segment)> {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&self.file).args(["-T", "fields"]);
        for field in ["tcp.srcport", "tcp.dstport", "tcp.flags", "tcp.len"] {
            command.args(["-e", field]);
        }
        // If the last packet is incomplete, tshark complains, but prints those before it.
        let output = command.output().expect("tshark");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines()
            .map(|line| read_line(line).unwrap_or_else(|| panic!("unexpected output of tshark: {line:?}")))
            .collect()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of a connection that sent a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// A segment, as far as the tests need it.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    pub from: Side,
    /// Those of SYN, FIN, RST, PSH and ACK that are set, in this order.
    pub flags: Vec<&'static str>,
    /// Bytes of data.
    pub length: usize,
}

impl Segment {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }
}

/// Formats a segment for the message of a failed test: `client PSH+ACK 3`.
impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.from == Side::Client { "client" } else { "server" };
        write!(f, "{from} {} {}", self.flags.join("+"), self.length)
    }
}

fn read_line(line: &str) -> Option<((u16, u16), Segment)> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [source, destination, flags, length] = fields[..] else { return None };
    let bits = u16::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
    let names = [(0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x10, "ACK")];
    let flags = names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name).collect();
    let segment = Segment { from: Side::Client, flags, length: length.parse().ok()? };
    Some(((source.parse().ok()?, destination.parse().ok()?), segment))
}
