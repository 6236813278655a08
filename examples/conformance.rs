//! Asks an echo server, any echo server, whether it is one.
//!
//!     cargo run --example conformance -- 127.0.0.1:9999               # everything
//!     cargo run --example conformance -- 127.0.0.1:9999 binary reset  # these two
//!
//! One line a check. Where a check fails: what was expected, and what came. Exit status: 0, all is well; 1, something
//! is not; 2, the command line is wrong.
//!
//! It expects what RFC 862 says of TCP and what follows from TCP itself: what comes in goes out, until the peer has
//! finished; and no peer suffers from another. It never sends more before it reads than [`WITHIN_LIMITS`]: a server that holds
//! a bounded amount for each peer may stop reading then, and is right.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// How long the server may leave us waiting for a byte.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What every server should take in although nothing is read yet: the kernel's buffers alone hold as much.
const WITHIN_LIMITS: usize = 64 * 1024;

/// More than all buffers together.
const BIG: usize = 16 << 20;

/// What came instead of what was expected.
type Outcome = Result<(), String>;

/// A check: its name, what is expected in words, and how to find out.
type Check = (&'static str, &'static str, fn(SocketAddr) -> Outcome);

/// What ends a bad server comes last.
const CHECKS: [Check; 12] = [
    ("hello", "one short message comes back", hello),
    ("conversation", "one connection carries message after message", conversation),
    ("half-close", "after our FIN the rest of the echo, then the server's FIN", half_close),
    ("nothing", "a FIN without a byte before it is answered with a FIN", nothing),
    ("long-message", "5,000 bytes sent at once come back, whatever the server's buffer", long_message),
    ("write-all", "64 KiB written before the first read come back", write_all),
    ("big", "16 MiB come back to a peer that reads as it writes", big),
    ("slow-reader", "a peer that reads slowly loses nothing", slow_reader),
    ("five-at-once", "five peers are served at once, whoever speaks first", five_at_once),
    ("urgent", "a byte sent with MSG_OOB stays in its place (RFC 6093)", urgent),
    ("binary", "all 256 bytes come back, valid UTF-8 or not", binary),
    ("reset", "a peer's RST is that peer's matter: the next one is served", reset),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let unknown = arguments.iter().skip(1).find(|name| CHECKS.iter().all(|check| check.0 != *name));
    let address = arguments.first().and_then(|address| address.to_socket_addrs().ok()?.next());
    let Some(address) = address.filter(|_| unknown.is_none()) else {
        let names = CHECKS.map(|check| check.0).join(", ");
        say(&format!("usage: conformance HOST:PORT [CHECK]...\nchecks: {names}"));
        return ExitCode::from(2);
    };
    let wanted =
        CHECKS.iter().filter(|check| arguments.len() == 1 || arguments[1..].iter().any(|name| name == check.0));
    let (mut passed, mut failed) = (0, 0);
    for &(name, expected, check) in wanted {
        match check(address).and_then(|()| still_there(address)) {
            Ok(()) => {
                passed += 1;
                say(&format!("ok      {name}: {expected}"));
            }
            Err(came) => {
                failed += 1;
                say(&format!("WRONG   {name}\n        expected: {expected}\n        came:     {came}"));
            }
        }
        if let Err(error) = TcpStream::connect_timeout(&address, TIMEOUT) {
            say(&format!("GONE    after {name} nobody listens at {address} any more: {error}"));
            failed = failed.max(1);
            break;
        }
    }
    say(&format!("{passed} right, {failed} wrong"));
    ExitCode::from(u8::from(failed > 0))
}

fn say(line: &str) {
    // A reader that has gone away has seen enough.
    let _ = writeln!(io::stdout(), "{line}");
}

// ---- the checks ----

fn hello(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    send(&mut peer, b"hello\n")?;
    expect(&mut peer, b"hello\n")
}

fn conversation(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    for number in 1..=100 {
        let message = format!("message {number}\n");
        let told = |came| format!("message {number} of 100: {came}");
        send(&mut peer, message.as_bytes()).map_err(told)?;
        expect(&mut peer, message.as_bytes()).map_err(told)?;
    }
    Ok(())
}

fn half_close(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    send(&mut peer, b"last words")?;
    finish(&peer)?;
    expect(&mut peer, b"last words")?;
    expect_fin(&mut peer)
}

fn nothing(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    finish(&peer)?;
    expect_fin(&mut peer)
}

fn long_message(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    let message = pattern(5000);
    send(&mut peer, &message)?;
    expect(&mut peer, &message)
}

fn write_all(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    let message = pattern(WITHIN_LIMITS);
    send(&mut peer, &message)?;
    expect(&mut peer, &message)
}

fn big(address: SocketAddr) -> Outcome {
    exchange(address, &pattern(BIG), |_| ())
}

fn slow_reader(address: SocketAddr) -> Outcome {
    // A pause is what is tested here: it fills every buffer between, so that the server's writes fall short.
    exchange(address, &pattern(BIG), |read| {
        if read.is_multiple_of(1 << 20) {
            thread::sleep(Duration::from_millis(50));
        }
    })
}

fn five_at_once(address: SocketAddr) -> Outcome {
    let connect = |number| connect(address).map_err(|came| format!("peer {number} of 5: {came}"));
    let mut peers = (1..=5).map(connect).collect::<Result<Vec<_>, _>>()?;
    // The last to come speaks first, while the others are silent.
    for number in (0..5).rev() {
        let message = format!("peer {}\n", number + 1);
        let told = |came| format!("peer {} of 5, speaking while others are silent: {came}", number + 1);
        send(&mut peers[number], message.as_bytes()).map_err(told)?;
        expect(&mut peers[number], message.as_bytes()).map_err(told)?;
    }
    Ok(())
}

fn urgent(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    send(&mut peer, b"before ")?;
    SockRef::from(&peer).send_out_of_band(b"!").map_err(|error| format!("send(2) with MSG_OOB: {error}"))?;
    send(&mut peer, b" after")?;
    finish(&peer)?;
    expect(&mut peer, b"before ! after")?;
    expect_fin(&mut peer)
}

fn binary(address: SocketAddr) -> Outcome {
    let mut peer = connect(address)?;
    let message: Vec<u8> = (0..=255).rev().collect();
    send(&mut peer, &message)?;
    expect(&mut peer, &message)
}

fn reset(address: SocketAddr) -> Outcome {
    // Twenty, since a server may by chance have done with one before its RST comes.
    for number in 1..=20 {
        let told = |came| format!("peer {number} of 20, each of which resets: {came}");
        let mut peer = connect(address).map_err(told)?;
        send(&mut peer, b"gone").map_err(told)?;
        // close(2) with SO_LINGER of 0 is RST.
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).map_err(|error| error.to_string())?;
    }
    hello(address).map_err(|came| format!("the next peer: {came}"))
}

/// Whatever a check has done to it, a server serves the next peer.
fn still_there(address: SocketAddr) -> Outcome {
    hello(address).map_err(|came| format!("that, but then, to another peer: {came}"))
}

// ---- a peer ----

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let peer = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|error| format!("no connection: {error}"))?;
    let prepare = || {
        peer.set_nodelay(true)?;
        peer.set_read_timeout(Some(TIMEOUT))?;
        peer.set_write_timeout(Some(TIMEOUT))
    };
    prepare().map_err(|error| error.to_string())?;
    Ok(peer)
}

fn send(peer: &mut TcpStream, bytes: &[u8]) -> Outcome {
    peer.write_all(bytes).map_err(|error| format!("sending {} bytes: {}", bytes.len(), spoken(&error)))
}

fn finish(peer: &TcpStream) -> Outcome {
    peer.shutdown(Shutdown::Write).map_err(|error| format!("at our FIN: {}", spoken(&error)))
}

/// Exactly these bytes are next.
fn expect(peer: &mut TcpStream, expected: &[u8]) -> Outcome {
    read(peer, expected, |_| ())
}

/// Exactly these bytes are next; `between` is told of every 64 KiB.
fn read(peer: &mut TcpStream, expected: &[u8], between: impl Fn(usize)) -> Outcome {
    let mut buffer = vec![0; 65536];
    let mut length = 0;
    while length < expected.len() {
        let most = buffer.len().min(expected.len() - length);
        let came = match peer.read(&mut buffer[..most]) {
            Ok(0) => return Err(format!("FIN after {length} of {} bytes", expected.len())),
            Ok(came) => came,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("{} after {length} of {} bytes", spoken(&error), expected.len())),
        };
        for (place, (&came, &expected)) in (length..).zip(buffer[..came].iter().zip(&expected[length..])) {
            if came != expected {
                return Err(format!("byte {place} is {came:#04x}, which was {expected:#04x} on the way there"));
            }
        }
        let before = length;
        length += came;
        if before / 65536 != length / 65536 {
            between(length / 65536 * 65536);
        }
    }
    Ok(())
}

fn expect_fin(peer: &mut TcpStream) -> Outcome {
    let mut byte = [0];
    match peer.read(&mut byte) {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("{:#04x}, which was never sent, where a FIN should be", byte[0])),
        Err(error) => Err(format!("{} where a FIN should be", spoken(&error))),
    }
}

/// Sends and reads at the same time, as a peer must that has more to send than buffers hold.
fn exchange(address: SocketAddr, message: &[u8], between: impl Fn(usize)) -> Outcome {
    let mut peer = connect(address)?;
    let mut sender = peer.try_clone().map_err(|error| error.to_string())?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || send(&mut sender, message).and_then(|()| finish(&sender)));
        let came = read(&mut peer, message, between).and_then(|()| expect_fin(&mut peer));
        // If the echo has failed, the sender fails for the same reason, and later.
        came.and(sent.join().expect("send does not panic"))
    })
}

/// What an error means on the wire.
fn spoken(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("nothing for {} s", TIMEOUT.as_secs()),
        // After an RST, a read says the first, a write the second, shutdown(2) the third.
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => format!("RST ({error})"),
        _ => error.to_string(),
    }
}

/// Text, so that it is the length that is tested. Its period is no power of two, so that a shift is seen.
fn pattern(length: usize) -> Vec<u8> {
    (b'a'..=b'y').cycle().take(length).collect()
}
