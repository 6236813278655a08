//! Whether `--explain` tells the truth: every segment with data, FIN or RST that tshark sees is told, in the
//! same order, with the same length.

use std::net::SocketAddr;

use rustix::event::PollFlags;

use crate::network::{Network, SERVER, Segment, Side};
use crate::support::{Client, Daemon, Signal, TIMEOUT, wait_until};
use crate::wait_until_closed;

/// What a segment with data, FIN or RST says to both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// So many bytes. `None`: told of bytes that came after our close(2), whose number no program learns.
    Data(Side, Option<usize>),
    Fin(Side),
    Rst(Side),
}

/// Whether the narrator has told what the wire has shown.
fn agrees(told: &Event, seen: &Event) -> bool {
    match (told, seen) {
        (Event::Data(teller, None), Event::Data(sender, Some(_))) => teller == sender,
        _ => told == seen,
    }
}

/// The events of a capture. A FIN may ride on the last data.
fn seen(segments: &[Segment]) -> Vec<Event> {
    let mut events = Vec::new();
    for segment in segments {
        if segment.length > 0 {
            events.push(Event::Data(segment.from, Some(segment.length)));
        }
        if segment.has("FIN") {
            events.push(Event::Fin(segment.from));
        }
        if segment.has("RST") {
            events.push(Event::Rst(segment.from));
        }
    }
    events
}

/// The events of a narrative.
fn told(narrative: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut longest = usize::MAX;
    for line in narrative.lines().filter(|line| line.starts_with('#')) {
        if let Some((_, rest)) = line.split_once("segments of at most ") {
            longest = rest.split(' ').next().unwrap().parse().expect("a number");
        }
        // The arrow with what is written on it; its head says who drew it.
        let Some(arrow) = line.get(18..).filter(|arrow| arrow.starts_with(['─', '╌', '◄'])) else { continue };
        let from = if arrow.starts_with('◄') { Side::Server } else { Side::Client };
        let label = arrow.trim_start_matches(['◄', '─', '╌']).split(['─', '╌']).next().unwrap().trim();
        match label.strip_prefix("PSH+ACK len ") {
            Some("?") => events.push(Event::Data(from, None)),
            Some(length) => {
                let (length, segments) = length.split_once(", ").unwrap_or((length, "1 segments"));
                let mut left: usize = length.parse().expect("a number");
                let before = events.len();
                while left > 0 {
                    events.push(Event::Data(from, Some(left.min(longest))));
                    left = left.saturating_sub(longest);
                }
                assert_eq!(format!("{} segments", events.len() - before), segments, "{line}");
            }
            None if label == "FIN+ACK" => events.push(Event::Fin(from)),
            None if label == "RST" => events.push(Event::Rst(from)),
            None => assert!(["SYN", "SYN+ACK", "ACK"].contains(&label), "{line}"),
        }
    }
    events
}

/// A conversation, from the daemon's start to the comparison.
///
/// What the conversation returns is kept: a client that must not close before the capture ends, say.
fn converse<T>(arguments: &[&str], conversation: impl FnOnce(&Network, &mut Daemon, SocketAddr) -> T) {
    let Some(network) = Network::new() else { return };
    let (mut daemon, address) = start(&network, arguments);
    let capture = network.capture();
    let _kept = conversation(&network, &mut daemon, address);
    let segments = capture.finish(address.port());
    let seen = seen(&segments);
    assert!(seen.len() > 2, "{segments:?}");
    let agree =
        |told: &[Event]| told.len() == seen.len() && told.iter().zip(&seen).all(|(told, seen)| agrees(told, seen));
    let mut last = String::new();
    wait_until("what is told is what was seen, or it is too late", || {
        last = daemon.stdout();
        agree(&told(&last)) || told(&last).len() > seen.len()
    });
    assert!(agree(&told(&last)), "seen: {segments:?}\ntold:\n{last}");
}

fn start(network: &Network, arguments: &[&str]) -> (Daemon, SocketAddr) {
    let listen = format!("--listen={SERVER}:0");
    let arguments = [&[listen.as_str(), "--explain"], arguments].concat();
    let daemon = network.on_server(Daemon::with(&arguments)).start();
    let address = daemon.tcp();
    (daemon, address)
}

fn connect(network: &Network, address: SocketAddr) -> Client {
    network.on_client(|| Client::connect(&address.into()))
}

#[test]
fn messages_each_way_and_the_clients_fin() {
    converse(&[], |network, _, address| {
        let peer = connect(network, address);
        for length in [3, 1, 2, 500, 1448, 1] {
            peer.echo(&vec![b'x'; length]);
        }
        peer.send_fin();
        peer.expect_fin();
    });
}

#[test]
fn a_reset_by_the_client() {
    converse(&[], |network, _, address| {
        let peer = connect(network, address);
        peer.echo(b"hello");
        peer.reset();
    });
}

#[test]
fn one_shot_and_the_rst_that_answers_what_comes_after_it() {
    converse(&["--one-shot"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"aa\n");
        peer.expect_fin();
        wait_until_closed(daemon);
        peer.send(b"b\n");
        wait_until("the RST has come", || peer.socket.take_error().expect("SO_ERROR").is_some());
    });
}

#[test]
fn one_shot_and_the_clients_fin_long_after_our_close() {
    converse(&["--one-shot"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"aa\n");
        peer.expect_fin();
        wait_until("our FIN is acknowledged", || daemon.stdout().contains("FIN-WAIT-1 → FIN-WAIT-2"));
    });
}

#[test]
fn one_shot_and_a_client_that_closes_over_the_unread_answer() {
    converse(&["--one-shot"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.send(b"aa\n");
        wait_until("our FIN is acknowledged", || daemon.stdout().contains("FIN-WAIT-1 → FIN-WAIT-2"));
        drop(peer);
        // The RST that ends the capture would be taken for an answer to this client.
        wait_until("its end is told", || daemon.stdout().contains("gone"));
    });
}

#[test]
fn a_drain_with_bytes_that_come_after_our_fin() {
    converse(&[], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"hello");
        daemon.signal(Signal::TERM);
        peer.expect_fin();
        peer.send(b"too late");
        peer.send_fin();
        daemon.expect_success();
    });
}

#[test]
fn a_second_signal_with_the_clients_fin_still_to_come() {
    converse(&["--drain-timeout=1h"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"hello");
        daemon.signal(Signal::TERM);
        peer.expect_fin();
        daemon.signal(Signal::TERM);
        daemon.expect_success();
        peer
    });
}

/// Where windows close, segments have whatever length fits. So this asks for the end only.
#[test]
fn a_stalled_connection_falls_idle_and_its_unread_bytes_make_our_close_an_rst() {
    let Some(network) = Network::new() else { return };
    let (daemon, address) = start(&network, &["--idle-timeout=1s"]);
    let capture = network.capture();
    let peer = network.on_client(|| Client::connect_with_small_buffers(&address.into()));
    let block = vec![b'x'; 65536];
    while peer.wait_for(PollFlags::OUT, TIMEOUT) && peer.try_send(&block).is_ok() {}
    wait_until("the end is told", || daemon.stdout().contains("idle:"));
    let without_data = |mut events: Vec<Event>| {
        events.retain(|event| !matches!(event, Event::Data(..)));
        events
    };
    let seen = without_data(seen(&capture.finish(address.port())));
    let narrative = daemon.stdout();
    assert_eq!(without_data(told(&narrative)), seen, "{narrative}");
    assert_eq!(seen, [Event::Rst(Side::Server)], "{narrative}");
    assert!(narrative.contains("window closed"), "{narrative}");
}

/// Several segments a message: what the daemon reads at once is the network's choice, so the order holds for each direction.
#[test]
fn a_message_of_several_segments_is_told_with_their_lengths() {
    let Some(network) = Network::new() else { return };
    let (daemon, address) = start(&network, &[]);
    let capture = network.capture();
    let peer = connect(&network, address);
    peer.echo(&[b'x'; 4000]);
    peer.send_fin();
    peer.expect_fin();
    let seen = seen(&capture.finish(address.port()));
    wait_until("the end is told", || daemon.stdout().contains("finished:"));
    let told = told(&daemon.stdout());
    for from in [Side::Client, Side::Server] {
        let lengths = |events: &[Event]| -> Vec<usize> {
            let length = |event: &Event| match *event {
                Event::Data(sender, length) if sender == from => length,
                _ => None,
            };
            events.iter().filter_map(length).collect()
        };
        assert_eq!(lengths(&told), lengths(&seen), "{from:?}");
        assert_eq!(lengths(&seen), [1448, 1448, 1104], "{from:?}");
    }
}
