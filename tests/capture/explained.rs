//! `--explain` compared with the wire: it prints every segment with data, FIN or RST that tshark sees, in the same order and
//! with the same length.

use std::net::SocketAddr;

use rustix::event::PollFlags;

use crate::network::{Network, SERVER, Segment, Side};
use crate::support::{Client, Daemon, Signal, TIMEOUT, wait_until};
use crate::wait_until_closed;

/// What a segment with data, FIN or RST does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Data of this length. `None`: printed for data that arrived after our close(2), whose length no program learns.
    Data(Side, Option<usize>),
    Fin(Side),
    Rst(Side),
}

/// Returns whether a printed event describes a captured one.
fn agrees(printed: &Event, captured: &Event) -> bool {
    match (printed, captured) {
        (Event::Data(from, None), Event::Data(sender, Some(_))) => from == sender,
        _ => printed == captured,
    }
}

/// Returns the events of a capture. A FIN may be in the same segment as the last data.
fn captured(segments: &[Segment]) -> Vec<Event> {
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

/// Returns the events of the output of `--explain`.
fn printed(output: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut mss = usize::MAX;
    for line in output.lines().filter(|line| line.starts_with('#')) {
        if let Some((_, rest)) = line.split_once("; MSS ") {
            mss = rest.split(' ').next().unwrap().parse().expect("number");
        }
        // The arrow and its label; its head says which side sent the segment.
        let Some(arrow) = line.get(17..).filter(|arrow| arrow.starts_with(['─', '╌', '◄'])) else { continue };
        let from = if arrow.starts_with('◄') { Side::Server } else { Side::Client };
        let label = arrow.trim_start_matches(['◄', '─', '╌']).split(['─', '╌']).next().unwrap().trim();
        match label.strip_prefix("PSH+ACK len ") {
            Some("?") => events.push(Event::Data(from, None)),
            Some(length) => {
                let (length, segments) = length.split_once(" ×").unwrap_or((length, "1"));
                let mut left: usize = length.parse().expect("number");
                let before = events.len();
                while left > 0 {
                    events.push(Event::Data(from, Some(left.min(mss))));
                    left = left.saturating_sub(mss);
                }
                assert_eq!((events.len() - before).to_string(), segments, "{line}");
            }
            None if label == "FIN+ACK" => events.push(Event::Fin(from)),
            None if label == "RST" => events.push(Event::Rst(from)),
            None => assert!(["SYN", "SYN+ACK", "ACK"].contains(&label), "{line}"),
        }
    }
    events
}

/// Runs a conversation with a new daemon, and compares its output with the capture.
///
/// What the conversation returns is kept until then, for example a client that must not close before the capture ends.
fn assert_output_matches_wire<T>(
    arguments: &[&str],
    conversation: impl FnOnce(&Network, &mut Daemon, SocketAddr) -> T,
) {
    let Some(network) = Network::new() else { return };
    let (mut daemon, address) = start(&network, arguments);
    let capture = network.capture();
    let _kept = conversation(&network, &mut daemon, address);
    let segments = capture.finish(address.port());
    let captured = captured(&segments);
    assert!(captured.len() > 2, "{segments:?}");
    let agree = |printed: &[Event]| {
        printed.len() == captured.len()
            && printed.iter().zip(&captured).all(|(printed, captured)| agrees(printed, captured))
    };
    let mut output = String::new();
    wait_until("the output matches the capture, or is longer", || {
        output = daemon.stdout();
        agree(&printed(&output)) || printed(&output).len() > captured.len()
    });
    assert!(agree(&printed(&output)), "captured: {segments:?}\nprinted:\n{output}");
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
fn messages_and_client_fin_match_the_wire() {
    assert_output_matches_wire(&[], |network, _, address| {
        let peer = connect(network, address);
        for length in [3, 1, 2, 500, 1448, 1] {
            peer.echo(&vec![b'x'; length]);
        }
        peer.send_fin();
        peer.expect_fin();
    });
}

#[test]
fn client_reset_matches_the_wire() {
    assert_output_matches_wire(&[], |network, _, address| {
        let peer = connect(network, address);
        peer.echo(b"hello");
        peer.reset();
    });
}

#[test]
fn one_shot_with_late_data_matches_the_wire() {
    assert_output_matches_wire(&["--one-shot"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"aa\n");
        peer.expect_fin();
        wait_until_closed(daemon);
        peer.send(b"b\n");
        wait_until("the RST has arrived", || peer.socket.take_error().expect("SO_ERROR").is_some());
    });
}

#[test]
fn one_shot_with_late_fin_matches_the_wire() {
    assert_output_matches_wire(&["--one-shot"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"aa\n");
        peer.expect_fin();
        wait_until("our FIN is acknowledged", || daemon.stdout().contains("FIN-WAIT-1 → FIN-WAIT-2"));
    });
}

#[test]
fn one_shot_with_unread_echo_matches_the_wire() {
    assert_output_matches_wire(&["--one-shot"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.send(b"aa\n");
        wait_until("our FIN is acknowledged", || daemon.stdout().contains("FIN-WAIT-1 → FIN-WAIT-2"));
        drop(peer);
        // The RST that ends the capture would be attributed to this client.
        wait_until("its end is printed", || daemon.stdout().contains("gone"));
    });
}

#[test]
fn drain_with_discarded_data_matches_the_wire() {
    assert_output_matches_wire(&[], |network, daemon, address| {
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
fn second_signal_matches_the_wire() {
    assert_output_matches_wire(&["--drain-timeout=1h"], |network, daemon, address| {
        let peer = connect(network, address);
        peer.echo(b"hello");
        daemon.signal(Signal::TERM);
        peer.expect_fin();
        daemon.signal(Signal::TERM);
        daemon.expect_success();
        peer
    });
}

/// Compares only FIN and RST: while a window is nearly closed, the length of segments is whatever fits.
#[test]
fn idle_stalled_connection_ends_in_rst_on_the_wire() {
    let Some(network) = Network::new() else { return };
    let (daemon, address) = start(&network, &["--idle-timeout=1s"]);
    let capture = network.capture();
    let peer = network.on_client(|| Client::connect_with_small_buffers(&address.into()));
    let block = vec![b'x'; 65536];
    while peer.wait_for(PollFlags::OUT, TIMEOUT) && peer.try_send(&block).is_ok() {}
    wait_until("the summary is printed", || daemon.stdout().contains("idle:"));
    let without_data = |mut events: Vec<Event>| {
        events.retain(|event| !matches!(event, Event::Data(..)));
        events
    };
    let captured = without_data(captured(&capture.finish(address.port())));
    let output = daemon.stdout();
    assert_eq!(without_data(printed(&output)), captured, "{output}");
    assert_eq!(captured, [Event::Rst(Side::Server)], "{output}");
    assert!(output.contains("window closed"), "{output}");
}

/// Compares each direction by itself: how many segments one read returns depends on the network.
#[test]
fn message_of_several_segments_matches_the_wire() {
    let Some(network) = Network::new() else { return };
    let (daemon, address) = start(&network, &[]);
    let capture = network.capture();
    let peer = connect(&network, address);
    peer.echo(&[b'x'; 4000]);
    peer.send_fin();
    peer.expect_fin();
    let captured = captured(&capture.finish(address.port()));
    wait_until("the summary is printed", || daemon.stdout().contains("finished:"));
    let printed = printed(&daemon.stdout());
    for from in [Side::Client, Side::Server] {
        let lengths = |events: &[Event]| -> Vec<usize> {
            let length = |event: &Event| match *event {
                Event::Data(sender, length) if sender == from => length,
                _ => None,
            };
            events.iter().filter_map(length).collect()
        };
        assert_eq!(lengths(&printed), lengths(&captured), "{from:?}");
        assert_eq!(lengths(&captured), [1448, 1448, 1104], "{from:?}");
    }
}
