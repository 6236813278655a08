//! The questions, in the order in which they are asked.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::peer::{Outcome, Peer, arrived, pattern, timeout};
use crate::server::{Launcher, Server};

/// One question: its name, what is expected, and how it is asked.
pub struct Question {
    pub name: &'static str,
    pub expected: &'static str,
    pub ask: Ask,
}

/// How a question is asked.
pub enum Ask {
    /// Of any server.
    Any(fn(&Target) -> Outcome),
    /// Of a server that the question starts, stops or limits: needs `--spawn`.
    Spawned(fn(&Launcher) -> Outcome),
}

/// A running server.
pub struct Target<'a> {
    pub address: SocketAddr,
    /// If it was started by us.
    pub server: Option<&'a Server>,
}

impl Target<'_> {
    fn connect(&self) -> Outcome<Peer> {
        Peer::connect(self.address)
    }

    /// Runs `action` while the server is stopped, so that everything in it arrives as one event. A
    /// server that was not started by us goes on, and may see several.
    fn held<T>(&self, action: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        match self.server {
            Some(server) => server.held(action),
            None => action(),
        }
    }
}

use Ask::{Any, Spawned};

/// Questions that end a bad server come last, because those after them could not be asked.
pub const QUESTIONS: [Question; 21] = [
    question("hello", "a short message comes back", Any(hello)),
    question("conversation", "one connection carries 100 messages, one after the other", Any(conversation)),
    question("half-close", "a FIN together with the last bytes: the echo, then the server's FIN", Any(half_close)),
    question("nothing", "a FIN with no byte before it is answered with a FIN", Any(nothing)),
    question("long-message", "5,000 bytes sent at once come back", Any(long_message)),
    question("write-all", "64 KiB written before the first read come back", Any(write_all)),
    question("big", "16 MiB come back to a peer that reads as it writes", Any(big)),
    question("slow-reader", "a peer that reads late and slowly loses nothing", Any(slow_reader)),
    question("stalled-peer", "while one peer does not read, others are served", Any(stalled_peer)),
    question("stalled-fin", "a peer that sends its FIN before it reads still gets everything", Any(stalled_fin)),
    question("many-at-once", "200 connections are open at once, and each is served", Any(many_at_once)),
    question("burst", "20 connections that arrive together are all served", Any(burst)),
    question("urgent", "a byte sent with MSG_OOB stays in its place (RFC 6093)", Any(urgent)),
    question("binary", "all 256 byte values come back", Any(binary)),
    question("reset", "after the resets of 20 peers, the next one is served", Any(reset)),
    question("fair", "short messages do not wait until 16 bulk transfers are over", Spawned(fair)),
    question("small-memory", "200 connections at once in 256 MiB of address space", Spawned(small_memory)),
    question("descriptors", "with 64 descriptors, 100 connections are all served in the end", Spawned(descriptors)),
    question("restart", "a new server can listen on the port of one that was killed", Spawned(restart)),
    question("stop", "at SIGTERM, everything that has arrived is still echoed, then FIN", Spawned(stop)),
    question("idle", "a silent peer is disconnected within 6 s (start with a short idle timeout)", Spawned(idle)),
];

const fn question(name: &'static str, expected: &'static str, ask: Ask) -> Question {
    Question { name, expected, ask }
}

/// What every server should accept before its echo is read: the kernel's buffers alone hold as
/// much. A server with bounded memory may stop reading after that, and is right.
const WITHIN_LIMITS: usize = 64 * 1024;

/// Much more than a read or a buffer in the kernel.
const BIG: usize = 16 << 20;

// ---- of any server ----

fn hello(target: &Target) -> Outcome {
    target.connect()?.hello()
}

fn conversation(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    for number in 1..=100 {
        let message = format!("message {number}\n");
        peer.send(message.as_bytes())
            .and_then(|()| peer.expect(message.as_bytes()))
            .map_err(|got| format!("message {number} of 100: {got}"))?;
    }
    peer.finish()?;
    peer.expect_fin()
}

fn half_close(target: &Target) -> Outcome {
    let mut peer = target.held(|| {
        let mut peer = target.connect()?;
        peer.send(b"last words")?;
        peer.finish()?;
        Ok(peer)
    })?;
    peer.expect(b"last words")?;
    peer.expect_fin()
}

fn nothing(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    peer.finish()?;
    peer.expect_fin()
}

fn long_message(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    peer.send(&pattern(0)[..5000])?;
    peer.expect(&pattern(0)[..5000])
}

fn write_all(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    peer.send(&pattern(0)[..WITHIN_LIMITS])?;
    peer.expect(&pattern(0)[..WITHIN_LIMITS])
}

/// Never leaves more than [`WITHIN_LIMITS`] unread, so that no server has to stop reading.
fn big(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    let mut buffer = vec![0; WITHIN_LIMITS];
    while peer.received() < BIG {
        peer.send_pattern(BIG.min(peer.received() + WITHIN_LIMITS))?;
        peer.receive_pattern(&mut buffer)?;
    }
    peer.finish()?;
    peer.expect_fin()
}

/// Fills every buffer before the first read, so that the server's writes are certain to fall short.
fn slow_reader(target: &Target) -> Outcome {
    let mut peer = Peer::connect_narrow(target.address)?;
    peer.send_until_stalled()?;
    read_slowly(&mut peer, BIG)?;
    peer.finish()?;
    peer.expect_fin()
}

fn stalled_peer(target: &Target) -> Outcome {
    let mut stalled = Peer::connect_narrow(target.address)?;
    stalled.send_until_stalled()?;
    for number in 1..=20 {
        hello(target).map_err(|got| format!("peer {number} of 20 beside the one that does not read: {got}"))?;
    }
    Ok(())
}

fn stalled_fin(target: &Target) -> Outcome {
    let mut peer = Peer::connect_narrow(target.address)?;
    peer.send_until_stalled()?;
    peer.finish()?;
    read_slowly(&mut peer, 0)?;
    peer.expect_fin()
}

/// Reads everything with pauses between, and meanwhile sends on, up to `total` bytes.
fn read_slowly(peer: &mut Peer, total: usize) -> Outcome {
    let mut buffer = vec![0; 64 * 1024];
    let mut pause_at = peer.received();
    while peer.in_flight() > 0 {
        if peer.received() >= pause_at {
            // The pause is the test: in it, the buffers fill again.
            thread::sleep(Duration::from_millis(20));
            pause_at += 1 << 20;
        }
        peer.send_pattern(total)?;
        peer.receive_pattern(&mut buffer)?;
    }
    Ok(())
}

fn many_at_once(target: &Target) -> Outcome {
    let mut peers = Vec::new();
    for number in 1..=200 {
        let mut peer = target.connect().map_err(|got| format!("connection {number} of 200: {got}"))?;
        peer.hello().map_err(|got| format!("connection {number} of 200, while the others are open: {got}"))?;
        peers.push(peer);
    }
    for (number, peer) in peers.iter_mut().enumerate().rev() {
        peer.hello().map_err(|got| format!("second message on connection {} of 200: {got}", number + 1))?;
    }
    Ok(())
}

fn burst(target: &Target) -> Outcome {
    let mut peers = target.held(|| (0..20).map(|_| target.connect()).collect::<Outcome<Vec<_>>>())?;
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.hello().map_err(|got| format!("connection {} of 20: {got}", number + 1))?;
    }
    Ok(())
}

fn urgent(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    peer.send(b"before ")?;
    peer.send_urgent(b'!')?;
    peer.send(b" after")?;
    peer.finish()?;
    peer.expect(b"before ! after")?;
    peer.expect_fin()
}

fn binary(target: &Target) -> Outcome {
    let mut peer = target.connect()?;
    let message: Vec<u8> = (0..=255).rev().collect();
    peer.send(&message)?;
    peer.expect(&message)
}

fn reset(target: &Target) -> Outcome {
    // Twenty, because a server that is not stopped may have finished with a peer before its RST
    // arrives.
    for number in 1..=20 {
        let reset = || {
            let mut peer = target.connect()?;
            peer.send(b"gone")?;
            peer.reset()
        };
        target.held(reset).map_err(|got| format!("peer {number} of 20, each of which resets: {got}"))?;
    }
    hello(target).map_err(|got| format!("the next peer: {got}"))
}

// ---- of a server that is started for the question ----

/// Stops the server, gives it bulk transfers and then short messages, and lets it go on until the
/// first short message has come back. A server that serves each connection until there is no more
/// to read has then echoed all of the bulk that had arrived.
///
/// A server that shares its time has echoed less, but it goes on while we wake up. So a number of
/// attempts are made.
fn fair(launcher: &Launcher) -> Outcome {
    const HEAVY: usize = 16;
    const LIGHT: usize = 16;
    // Bytes that one end has written arrive at the other within this time, even if Nagle's algorithm
    // holds them back until a delayed acknowledgment, and even if a segment is retransmitted.
    const IN_TRANSIT: Duration = Duration::from_millis(500);
    let server = launcher.start()?;
    let mut light = (0..LIGHT).map(|_| Peer::connect(server.address)).collect::<Outcome<Vec<_>>>()?;
    let mut heavy = (0..HEAVY).map(|_| Peer::connect_wide(server.address)).collect::<Outcome<Vec<_>>>()?;
    let mut buffer = vec![0; 64 * 1024];
    light.iter_mut().chain(&mut heavy).try_for_each(Peer::hello)?; // By now, it has its threads.
    // With a thread for each connection, the scheduler decides, and on a busy machine it may let us
    // wait until everything is over, so one attempt that shows sharing is enough. With one thread,
    // most have to: a transfer that loses a segment stalls, and then even an unfair server turns
    // to the others.
    let (attempts, needed) = if server.has_threads() { (60, 1) } else { (12, 7) };
    let mut fair = 0;
    for _ in 0..attempts {
        // After this, the server waits, or is about to.
        light.iter_mut().chain(&mut heavy).try_for_each(Peer::hello)?;
        let arrived = server.held(|| {
            // 1 MiB each: more than a server should do for one connection at a time, and so little
            // that the buffers hold it and no write falls short.
            heavy.iter_mut().try_for_each(|peer| peer.send_pattern(peer.received() + (1 << 20)).map(drop))?;
            thread::sleep(Duration::from_millis(50)); // Enough for most of it; the rest is not counted.
            let arrived = arrived(&heavy)?;
            // These arrive last, so an event for them comes last.
            light.iter_mut().try_for_each(|peer| peer.send(b"x"))?;
            Ok(arrived)
        })?;
        wait_for_first(&light)?;
        let echoed = server.held(|| {
            let (mut echoed, mut last) = (0, Instant::now());
            // All that had arrived is enough to know.
            while echoed < arrived && last.elapsed() < IN_TRANSIT {
                match heavy.iter_mut().map(|peer| peer.receive_some(&mut buffer)).sum::<Outcome<usize>>()? {
                    0 => thread::sleep(Duration::from_millis(1)),
                    count => (echoed, last) = (echoed + count, Instant::now()),
                }
            }
            Ok(echoed)
        })?;
        light.iter_mut().try_for_each(|peer| peer.expect(b"x"))?;
        heavy.iter_mut().try_for_each(Peer::receive_rest)?;
        fair += usize::from(echoed < arrived);
        if fair == needed {
            return Ok(());
        }
    }
    let unfair = attempts - fair;
    Err(format!("in {unfair} of {attempts} attempts, all bulk was echoed before the first short message"))
}

/// Waits until something has arrived for one of these peers.
fn wait_for_first(peers: &[Peer]) -> Outcome {
    let start = Instant::now();
    while !peers.iter().any(Peer::has_news) {
        if start.elapsed() > timeout() {
            return Err(format!("none of {} short messages came back", peers.len()));
        }
        thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

fn small_memory(launcher: &Launcher) -> Outcome {
    let server = launcher.start_with("ulimit -v 262144;", 0)?;
    many_at_once(&Target { address: server.address, server: Some(&server) })
}

fn descriptors(launcher: &Launcher) -> Outcome {
    let server = launcher.start_with("ulimit -n 64;", 0)?;
    let connect = |number| {
        let mut peer = Peer::connect(server.address).map_err(|got| format!("connection {number} of 100: {got}"))?;
        peer.send(b"hello\n")?;
        Ok(peer)
    };
    let mut waiting = server.held(|| (1..=100).map(connect).collect::<Outcome<Vec<_>>>())?;
    // Nothing is closed before the server has used up its descriptors.
    let (mut answered, mut last_progress) = (0, Instant::now());
    while last_progress.elapsed() < Duration::from_secs(1) {
        let now = waiting.iter().filter(|peer| peer.has_news()).count();
        if now != answered {
            (answered, last_progress) = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(5));
    }
    // Now a connection that has been answered is closed, which gives the server a descriptor for
    // the next one.
    let mut last_progress = Instant::now();
    while !waiting.is_empty() {
        let (answered, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(Peer::has_news);
        waiting = rest;
        if last_progress.elapsed() > timeout() {
            return Err(format!("{} of 100 not served although {} were closed", waiting.len(), 100 - waiting.len()));
        }
        for mut peer in answered {
            peer.expect(b"hello\n")?;
            last_progress = Instant::now();
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn restart(launcher: &Launcher) -> Outcome {
    let server = launcher.start()?;
    let port = server.address.port();
    let mut peer = Peer::connect(server.address)?;
    peer.hello()?;
    // The kernel closes the connection for the killed server, which leaves the port in TIME-WAIT.
    drop(server);
    drop(peer);
    let server = launcher.start_with("", port).map_err(|got| format!("on port {port} again: {got}"))?;
    Peer::connect(server.address)?.hello()
}

fn stop(launcher: &Launcher) -> Outcome {
    let server = launcher.start()?;
    let mut open = Peer::connect(server.address)?;
    open.hello()?;
    let mut pending = server.held(|| {
        open.send(b"last words")?;
        let mut pending = Peer::connect(server.address)?;
        pending.send(b"just in time")?;
        server.signal(Signal::TERM)?;
        Ok(pending)
    })?;
    open.expect(b"last words").and_then(|()| open.expect_fin()).map_err(|got| format!("open connection: {got}"))?;
    pending
        .expect(b"just in time")
        .and_then(|()| pending.expect_fin())
        .map_err(|got| format!("pending connection: {got}"))
}

fn idle(launcher: &Launcher) -> Outcome {
    let server = launcher.start()?;
    let ended = Peer::connect(server.address)?.wait_for_end(Duration::from_secs(6))?;
    if ended { Ok(()) } else { Err("still connected after 6 s".into()) }
}
