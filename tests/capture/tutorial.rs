//! The packets of the tutorial, segment by segment.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;

use crate::network::{Network, SERVER, Segment, Side};
use crate::support::{Address, Client, Daemon, has_program, skip_missing, wait_until};
use crate::wait_until_closed;

fn segment(from: Side, flags: &[&'static str], length: usize) -> Segment {
    Segment { from, flags: flags.to_vec(), length }
}

fn client(flags: &[&'static str], length: usize) -> Segment {
    segment(Side::Client, flags, length)
}

fn server(flags: &[&'static str], length: usize) -> Segment {
    segment(Side::Server, flags, length)
}

/// Returns the segments without those that only acknowledge: when they are sent depends on the kernel.
fn without_bare_acks(segments: &[Segment]) -> Vec<Segment> {
    let bare = |segment: &Segment| segment.flags == ["ACK"] && segment.length == 0;
    segments.iter().filter(|segment| !bare(segment)).cloned().collect()
}

fn daemon(network: &Network, arguments: &[&str]) -> (Daemon, SocketAddr) {
    let listen = format!("--listen={SERVER}:0");
    let arguments = [&[listen.as_str()], arguments].concat();
    let daemon = network.on_server(Daemon::with(&arguments)).start();
    let address = daemon.tcp();
    (daemon, address)
}

fn assert_handshake(segments: &[Segment]) {
    assert_eq!(segments[..3], [client(&["SYN"], 0), server(&["SYN", "ACK"], 0), client(&["ACK"], 0)], "{segments:?}");
}

#[test]
fn echo_of_one_line_has_the_segments_of_the_tutorial() {
    let Some(network) = Network::new() else { return };
    let (daemon, address) = daemon(&network, &[]);
    let capture = network.capture();
    let peer = network.on_client(|| Client::connect(&address.into()));

    peer.echo(b"aa\n");
    peer.send_fin(); // Ctrl-D
    peer.expect_fin();
    drop(peer);

    assert_segments_of_the_tutorial(&capture.finish(address.port()));
    drop(daemon);
}

#[test]
fn netcat_sends_the_same_segments() {
    if !has_program("nc") {
        return skip_missing("nc");
    }
    let Some(network) = Network::new() else { return };
    let (daemon, address) = daemon(&network, &[]);
    let capture = network.capture();
    let mut command = network.client_command("nc");
    command.args(["-N", &address.ip().to_string(), &address.port().to_string()]);
    let mut netcat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nc");

    netcat.stdin.as_mut().unwrap().write_all(b"aa\n").expect("send");
    let mut echo = [0; 3];
    netcat.stdout.as_mut().unwrap().read_exact(&mut echo).expect("echo");
    assert_eq!(&echo, b"aa\n");
    drop(netcat.stdin.take()); // Ctrl-D
    wait_until("nc exits after the FIN of the server", || netcat.try_wait().expect("wait(2)").is_some());

    assert_segments_of_the_tutorial(&capture.finish(address.port()));
    drop(daemon);
}

/// Asserts SYN, SYN+ACK, ACK; 3 bytes in each direction; FIN, ACK, FIN, ACK in four segments, or in three if the kernel combines
/// the server's ACK and FIN; and no RST.
fn assert_segments_of_the_tutorial(segments: &[Segment]) {
    assert_handshake(segments);
    let (data, fin) = (&["PSH", "ACK"], &["FIN", "ACK"]);
    let expected = [client(data, 3), server(data, 3), client(fin, 0), server(fin, 0)];
    assert_eq!(without_bare_acks(&segments[3..]), expected, "{segments:?}");
    let close = segments.iter().position(|segment| segment.has("FIN")).unwrap();
    let joined = [client(fin, 0), server(fin, 0), client(&["ACK"], 0)];
    let four = [client(fin, 0), server(&["ACK"], 0), server(fin, 0), client(&["ACK"], 0)];
    assert!(segments[close..] == joined || segments[close..] == four, "{segments:?}");
    assert!(!segments.iter().any(|segment| segment.has("RST")), "{segments:?}");
}

#[test]
fn one_shot_fin_is_first_and_late_data_gets_rst() {
    let Some(network) = Network::new() else { return };
    let (daemon, address) = daemon(&network, &["--one-shot"]);
    let capture = network.capture();
    let peer = network.on_client(|| Client::connect(&Address::Tcp(address)));

    peer.echo(b"aa\n");
    peer.expect_fin();
    wait_until_closed(&daemon);
    peer.send(b"b\n");
    wait_until("the RST has arrived", || peer.socket.take_error().expect("SO_ERROR").is_some());

    let segments = capture.finish(address.port());
    assert_handshake(&segments);
    let (data, fin) = (&["PSH", "ACK"], &["FIN", "ACK"]);
    let expected = [client(data, 3), server(data, 3), server(fin, 0), client(data, 2), server(&["RST"], 0)];
    assert_eq!(without_bare_acks(&segments[3..]), expected, "{segments:?}");
    drop(peer);
}
