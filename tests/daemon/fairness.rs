//! Small messages beside bulk transfers, and everything else that must not wait for them.
//!
//! How long they wait is measured by the benchmark (`cargo bench beside-bulk`). Here the limits are generous: each of them is
//! exceeded many times over if the server serves all bulk transfers between two looks at the poller.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, Signal, TIMEOUT, pattern, wait_until};

/// Peers that send and receive as much as they can. They stop when dropped.
struct Bulk {
    stop: Arc<AtomicBool>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
    received: Arc<AtomicU64>,
}

impl Bulk {
    fn start(daemon: &Daemon, count: usize) -> Bulk {
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let streams: Vec<TcpStream> =
            (0..count).map(|_| TcpStream::connect(daemon.tcp()).expect("connection")).collect();
        let spawn = |stream: &TcpStream, work: fn(TcpStream, &AtomicBool, &AtomicU64)| {
            let (stream, stop, received) = (stream.try_clone().expect("clone"), stop.clone(), received.clone());
            thread::Builder::new().stack_size(512 * 1024).spawn(move || work(stream, &stop, &received)).expect("thread")
        };
        let send = |mut stream: TcpStream, stop: &AtomicBool, _: &AtomicU64| {
            let block = [b'x'; 256 * 1024];
            while !stop.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
        };
        let receive = |mut stream: TcpStream, stop: &AtomicBool, received: &AtomicU64| {
            let mut block = vec![0; 256 * 1024];
            while !stop.load(Ordering::Relaxed)
                && let Ok(count @ 1..) = stream.read(&mut block)
            {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
        };
        let threads = streams.iter().flat_map(|stream| [spawn(stream, send), spawn(stream, receive)]).collect();
        let bulk = Bulk { stop, streams, threads, received };
        wait_until("bulk transfers are running", || bulk.received.load(Ordering::Relaxed) > 50 << 20);
        bulk
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.streams.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[test]
fn small_message_overtakes_bulk_transfers() {
    // One iteration that serves 64 peers by 4 reads of 16 MiB buffers would take seconds.
    let daemon = Daemon::start(&["--buffer-size", "1048576"]);
    let client = daemon.connect();
    client.echo(b"warm");
    let _bulk = Bulk::start(&daemon, 32);
    let mut waits: Vec<Duration> = (0..50)
        .map(|_| {
            let start = Instant::now();
            client.echo(b"ping");
            start.elapsed()
        })
        .collect();
    waits.sort();
    assert!(waits[25] < Duration::from_millis(250), "the median ping took {:?}", waits[25]);
}

#[test]
fn connection_that_waits_for_its_turn_is_not_idle() {
    let daemon = Daemon::start(&["--idle-timeout", "1s"]);
    let large = pattern(5, 100_000);
    let clients: Vec<Client> = (0..30).map(|_| daemon.connect()).collect();
    let _bulk = Bulk::start(&daemon, 8); // So the daemon is not stopped while it waits, and continues with all events at once.
    clients.iter().for_each(|client| client.echo(&large[..40_000])); // Its second part is a large read.
    daemon.freeze();
    clients.iter().for_each(|client| client.send(&large));
    thread::sleep(Duration::from_millis(1250));
    daemon.thaw();
    clients.iter().for_each(|client| client.expect(&large));
}

#[test]
fn second_signal_is_handled_during_large_drain() {
    const CONNECTIONS: usize = 3000;
    let mut daemon = Daemon::start(&["--drain-timeout", "60s"]);
    let clients: Vec<Client> = (0..CONNECTIONS).map(|_| daemon.connect()).collect();
    wait_until("all connections are accepted", || daemon.descriptors().len() > CONNECTIONS);
    daemon.signal(Signal::TERM);
    clients[0].expect_fin();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_exit(TIMEOUT).success());
}
