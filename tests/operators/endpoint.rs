//! The metrics endpoint: plain HTTP, and its independence from the echo at the connection limit, without descriptors, and during
//! a drain.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http::{endpoint, get, metrics, receive, send_request};
use crate::support::{Address, Client, Daemon, Signal, TIMEOUT, pattern, pending_connections, wait_until};

const METRICS: &str = "--metrics=127.0.0.1:0";

/// Raises the limit of this process to what is allowed, for a thousand clients and more.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[test]
fn endpoint_is_announced_after_the_listeners() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let lines: Vec<String> = daemon.stdout().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("listening on tcp://127.0.0.1:"), "{lines:?}");
    assert!(lines[1].starts_with("listening on http://127.0.0.1:"), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn address_in_use_exits_with_status_1() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let finished = Daemon::with(&["--metrics", &address]).run();
    assert_eq!(finished.code, 1);
    assert_eq!(finished.stderr, format!("echod: cannot listen on {address}: Address already in use (os error 98)\n"));
    assert_eq!(finished.stdout, "");
}

#[test]
fn endpoint_listens_on_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return crate::support::skip("IPv6 is not available");
    }
    let daemon = Daemon::start(&["--metrics=[::1]:0"]);
    assert_eq!(get(&daemon, "/healthz").status, 200);
}

#[test]
fn port_alone_answers_on_ipv4_and_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return crate::support::skip("IPv6 is not available");
    }
    let daemon = Daemon::start(&["--metrics=0"]);
    let Address::Http(address) = *endpoint(&daemon) else { panic!("expected http://") };
    for ip in ["127.0.0.1", "::1"] {
        let client = Client::connect(&Address::Http((ip.parse::<std::net::IpAddr>().unwrap(), address.port()).into()));
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n");
        assert_eq!(receive(&client).status, 200, "{ip}");
    }
}

#[test]
fn metrics_and_healthz_are_answered_and_closed() {
    let daemon = Daemon::start(&[METRICS]);
    let health = get(&daemon, "/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let metrics = metrics(&daemon);
    assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for response in [health, metrics] {
        assert_eq!(response.header("connection"), "close");
        assert_eq!(response.header("content-length"), response.body.len().to_string());
        assert!(response.header("date").ends_with(" GMT"));
    }
}

#[test]
fn head_request_gets_no_body() {
    let daemon = Daemon::start(&[METRICS]);
    for path in ["/metrics", "/healthz", "/nowhere"] {
        let head = send_request(&daemon, format!("HEAD {path} HTTP/1.1\r\nHost: echod\r\n\r\n"));
        assert_eq!(head.status, get(&daemon, path).status);
        assert_eq!(head.body, "");
        assert!(head.header("content-length").parse::<usize>().unwrap() > 0);
    }
}

#[test]
fn http_1_0_is_served() {
    let daemon = Daemon::start(&[METRICS]);
    assert_eq!(send_request(&daemon, "GET /metrics HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn request_followed_by_fin_is_answered() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    client.send_fin();
    assert_eq!(receive(&client).status, 200);
}

#[test]
fn request_in_pieces_is_answered() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    for byte in b"GET /healthz HTTP/1.1\r\nHost: echod\r\n\r\n" {
        client.send(&[*byte]);
        get(&daemon, "/nowhere"); // At least one iteration of the loop has passed.
    }
    assert_eq!(receive(&client).status, 200);
}

#[test]
fn metrics_requests_are_not_counted_as_connections() {
    let daemon = Daemon::start(&[METRICS]);
    let _waiting = Client::connect(endpoint(&daemon));
    for _ in 0..20 {
        get(&daemon, "/healthz");
    }
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_accepted_total"), 0.0);
    assert_eq!(page.value("echod_connections_open"), 0.0);
    for reason in ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"] {
        assert_eq!(page.value(&format!("echod_connections_closed_total{{reason=\"{reason}\"}}")), 0.0);
    }
    assert_eq!(page.value("echod_received_bytes_total"), 0.0);
}

#[test]
fn endpoint_answers_at_the_connection_limit() {
    let daemon = Daemon::start(&["--max-connections=2", METRICS]);
    let open = [daemon.connect(), daemon.connect()];
    open.iter().for_each(|client| client.echo(b"accepted"));
    let waiting = daemon.connect();
    waiting.send(b"waiting");
    wait_until("the third connection is in the backlog", || pending_connections(daemon.tcp()) == 1);

    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_open"), 2.0);
    assert_eq!(page.value("echod_connections_max"), 2.0);
    assert_eq!(page.value("echod_accept_paused"), 1.0);
    assert_eq!(page.value("echod_accept_pauses_total{reason=\"limit\"}"), 1.0);
    assert_eq!(get(&daemon, "/healthz").status, 200);

    let requesting: Vec<Client> = (0..16).map(|_| Client::connect(endpoint(&daemon))).collect();
    drop(open);
    waiting.expect(b"waiting");
    drop(requesting);
    assert_eq!(metrics(&daemon).value("echod_accept_paused"), 0.0);
}

#[test]
fn endpoint_answers_16_requests_without_free_descriptors() {
    let daemon = Daemon::with(&["--listen=127.0.0.1:0", METRICS]).nofile(64).start();
    let clients: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
    clients[0].echo(b"accepted");
    // Accepting stops at the limit; then the remaining descriptors, which the daemon has in reserve, are taken away as well.
    wait_until("the others are in the backlog", || metrics(&daemon).value("echod_accept_paused") == 1.0);
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    daemon.limit_descriptors(lowest_free as u64);

    for _ in 0..3 {
        let requesting: Vec<Client> = (0..16).map(|_| Client::connect(endpoint(&daemon))).collect();
        requesting.iter().for_each(|client| client.send(b"GET /metrics HTTP/1.0\r\n\r\n"));
        for client in requesting {
            let page = receive(&client);
            assert!(page.value("process_open_fds") > 20.0);
            assert_eq!(page.value("process_max_fds"), lowest_free as f64);
        }
    }
    clients[0].echo(b"open connections continue");
}

#[test]
fn descriptor_exhaustion_is_reported_without_spinning() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let clients: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"before exhaustion"));
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    let old_limit = daemon.limit_descriptors(lowest_free as u64);
    let waiting = daemon.connect();
    waiting.send(b"waiting");

    wait_until("the pause is reported", || metrics(&daemon).value("echod_accept_paused") == 1.0);
    let page = metrics(&daemon);
    assert!(page.value("echod_accept_errors_total") >= 1.0);
    assert_eq!(page.value("echod_accept_pauses_total{reason=\"descriptors\"}"), 1.0, "a renewed pause counts once");
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(20), "{cpu:?} of CPU without descriptors");

    daemon.limit_descriptors(old_limit);
    waiting.expect(b"waiting");
    assert_eq!(metrics(&daemon).value("echod_accept_paused"), 0.0);
}

/// Returns clients of the endpoint that connect and send nothing.
fn silent_clients(daemon: &Daemon, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::connect(endpoint(daemon))).collect()
}

#[test]
fn oldest_silent_client_makes_way_for_a_request() {
    let daemon = Daemon::start(&[METRICS]);
    let silent = silent_clients(&daemon, 16);
    let start = Instant::now();
    assert_eq!(get(&daemon, "/healthz").status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "answered after {:?}", start.elapsed());
    silent[0].expect_fin();
    silent[1..].iter().for_each(Client::expect_nothing_yet);
    // The others keep their places.
    silent[1].send(b"GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(receive(&silent[1]).status, 200);
}

#[test]
fn silent_clients_do_not_delay_healthz() {
    raise_descriptor_limit();
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let silent = silent_clients(&daemon, 1000);
    let address = endpoint(&daemon).clone();
    let (stop, stopped) = mpsc::channel::<()>();
    let arrivals = thread::spawn(move || {
        let mut open = VecDeque::new();
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            open.push_back(Client::connect(&address));
            if open.len() > 1000 {
                open.pop_front();
            }
            thread::sleep(Duration::from_micros(200));
        }
    });
    let mut waits: Vec<Duration> = (0..21)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(get(&daemon, "/healthz").status, 200);
            start.elapsed()
        })
        .collect();
    drop(stop);
    arrivals.join().unwrap();
    waits.sort_unstable();
    // The median, because the machine may be busy with other tests.
    assert!(waits[10] < Duration::from_millis(100), "{waits:?}");
    drop(silent);
}

#[test]
fn silent_client_makes_way_without_free_descriptors() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let client = daemon.connect();
    client.echo(b"before exhaustion");
    let open = daemon.descriptors();
    daemon.limit_descriptors((0..).find(|number| !open.contains(number)).unwrap() as u64);
    let _silent = silent_clients(&daemon, 40);
    for _ in 0..3 {
        let start = Instant::now();
        assert!(metrics(&daemon).value("process_open_fds") > 16.0);
        assert!(start.elapsed() < Duration::from_secs(2), "answered after {:?}", start.elapsed());
    }
    client.echo(b"open connections continue");
}

#[test]
fn endpoint_answers_during_a_drain_with_503_for_health() {
    let mut daemon = Daemon::start(&["--drain-timeout=30s", METRICS]);
    let peer = daemon.connect();
    peer.echo(b"open");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    let health = get(&daemon, "/healthz");
    assert_eq!((health.status, health.body.as_str()), (503, "draining\n"));
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_open"), 1.0);
    // Requests do not delay the end of the drain, complete or not.
    let _requesting: Vec<Client> = (0..16).map(|_| Client::connect(endpoint(&daemon))).collect();
    drop(peer);
    let status = daemon.wait_exit(Duration::from_secs(4));
    assert!(status.success(), "{status}");
}

#[test]
fn bytes_after_our_fin_are_counted_as_discarded() {
    let mut daemon = Daemon::start(&["--drain-timeout=30s", METRICS]);
    let peer = daemon.connect();
    peer.echo(b"open");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    peer.send(&[7; 1000]);
    wait_until("they are discarded", || metrics(&daemon).value("echod_discarded_bytes_total") == 1000.0);
    drop(peer);
    assert!(daemon.wait_exit(TIMEOUT).success());
}

#[test]
fn idle_daemon_with_endpoint_sleeps() {
    let daemon = Daemon::start(&[METRICS]);
    daemon.connect().echo(&pattern(1, 100));
    metrics(&daemon);
    let before = metrics(&daemon).value("echod_turns_total");
    let cpu = daemon.cpu_time_during(Duration::from_secs(2));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU while nothing happens");
    let iterations = metrics(&daemon).value("echod_turns_total") - before;
    assert!(iterations < 20.0, "{iterations} iterations while nothing happens");
}
