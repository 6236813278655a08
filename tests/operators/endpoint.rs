//! The endpoint as HTTP, when all goes well, and its standing beside the echo: at the cap, without descriptors, in a drain.

use std::time::Duration;

use crate::http::{answer, ask, endpoint, get, metrics};
use crate::support::{Client, Daemon, Signal, TIMEOUT, pattern, pending_connections, wait_until};

const METRICS: &str = "--metrics=127.0.0.1:0";

#[test]
fn the_endpoint_tells_where_it_listens_after_all_others() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let lines: Vec<String> = daemon.stdout().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("listening on tcp://127.0.0.1:"), "{lines:?}");
    assert!(lines[1].starts_with("listening on http://127.0.0.1:"), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn an_address_that_is_taken_is_an_error_with_status_1() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let finished = Daemon::with(&["--metrics", &address]).run();
    assert_eq!(finished.code, 1);
    assert_eq!(finished.stderr, format!("echod: cannot listen on {address}: Address already in use (os error 98)\n"));
    assert_eq!(finished.stdout, "");
}

#[test]
fn over_ipv6_as_well() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return crate::support::skip("no IPv6 here");
    }
    let daemon = Daemon::start(&["--metrics=[::1]:0"]);
    assert_eq!(get(&daemon, "/healthz").status, 200);
}

#[test]
fn metrics_and_healthz_are_answered_and_the_connection_is_closed() {
    let daemon = Daemon::start(&[METRICS]);
    let health = get(&daemon, "/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let metrics = metrics(&daemon);
    assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for answer in [health, metrics] {
        assert_eq!(answer.header("connection"), "close");
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
        assert!(answer.header("date").ends_with(" GMT"));
    }
}

#[test]
fn head_is_answered_with_the_head_alone() {
    let daemon = Daemon::start(&[METRICS]);
    for path in ["/metrics", "/healthz", "/nowhere"] {
        let head = ask(&daemon, format!("HEAD {path} HTTP/1.1\r\nHost: echod\r\n\r\n"));
        assert_eq!(head.status, get(&daemon, path).status);
        assert_eq!(head.body, "");
        assert!(head.header("content-length").parse::<usize>().unwrap() > 0);
    }
}

#[test]
fn http_1_0_is_served() {
    let daemon = Daemon::start(&[METRICS]);
    assert_eq!(ask(&daemon, "GET /metrics HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn a_peer_that_finishes_right_after_its_request_is_answered() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    client.send_fin();
    assert_eq!(answer(&client).status, 200);
}

#[test]
fn a_request_in_pieces_is_served() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    for byte in b"GET /healthz HTTP/1.1\r\nHost: echod\r\n\r\n" {
        client.send(&[*byte]);
        get(&daemon, "/nowhere"); // The loop has been round.
    }
    assert_eq!(answer(&client).status, 200);
}

#[test]
fn what_asks_for_metrics_counts_nowhere() {
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
fn at_the_cap_the_endpoint_answers_and_its_peers_take_no_place_of_a_connection() {
    let daemon = Daemon::start(&["--max-connections=2", METRICS]);
    let open = [daemon.connect(), daemon.connect()];
    open.iter().for_each(|client| client.echo(b"in"));
    let waiting = daemon.connect();
    waiting.send(b"waiting");
    wait_until("the third waits in the queue", || pending_connections(daemon.tcp()) == 1);

    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_open"), 2.0);
    assert_eq!(page.value("echod_accept_paused"), 1.0);
    assert_eq!(get(&daemon, "/healthz").status, 200);

    let asking: Vec<Client> = (0..16).map(|_| Client::connect(endpoint(&daemon))).collect();
    drop(open);
    waiting.expect(b"waiting");
    drop(asking);
    assert_eq!(metrics(&daemon).value("echod_accept_paused"), 0.0);
}

#[test]
fn without_descriptors_the_endpoint_answers_and_16_at_once() {
    let daemon = Daemon::with(&["--listen=127.0.0.1:0", METRICS]).nofile(64).start();
    let clients: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
    clients[0].echo(b"in");
    // As many as there is room for are in; then every number is taken, also those that the daemon had planned with.
    wait_until("the others wait in the queue", || metrics(&daemon).value("echod_accept_paused") == 1.0);
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    daemon.limit_descriptors(lowest_free as u64);

    for _ in 0..3 {
        let asking: Vec<Client> = (0..16).map(|_| Client::connect(endpoint(&daemon))).collect();
        asking.iter().for_each(|client| client.send(b"GET /metrics HTTP/1.0\r\n\r\n"));
        for client in asking {
            let page = answer(&client);
            assert!(page.value("process_open_fds") > 20.0);
            assert_eq!(page.value("process_max_fds"), lowest_free as f64);
        }
    }
    clients[0].echo(b"open connections go on");
}

#[test]
fn when_accepting_fails_for_want_of_descriptors_the_endpoint_says_so_and_nothing_spins() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let clients: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"before the famine"));
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    let plenty = daemon.limit_descriptors(lowest_free as u64);
    let waiting = daemon.connect();
    waiting.send(b"waiting");

    wait_until("the pause shows", || metrics(&daemon).value("echod_accept_paused") == 1.0);
    let page = metrics(&daemon);
    assert!(page.value("echod_accept_errors_total") >= 1.0);
    assert_eq!(page.value("echod_accept_pauses_total"), 1.0, "one, however often it is tried again");
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(20), "{cpu:?} of CPU without descriptors");

    daemon.limit_descriptors(plenty);
    waiting.expect(b"waiting");
    assert_eq!(metrics(&daemon).value("echod_accept_paused"), 0.0);
}

#[test]
fn during_a_drain_the_endpoint_answers_on_with_503_for_health() {
    let mut daemon = Daemon::start(&["--drain-timeout=30s", METRICS]);
    let peer = daemon.connect();
    peer.echo(b"open");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    let health = get(&daemon, "/healthz");
    assert_eq!((health.status, health.body.as_str()), (503, "draining\n"));
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_open"), 1.0);
    // Who asks does not put off the end: neither who is served nor who has yet to finish its request.
    let _asking: Vec<Client> = (0..16).map(|_| Client::connect(endpoint(&daemon))).collect();
    drop(peer);
    let status = daemon.wait_exit(Duration::from_secs(4));
    assert!(status.success(), "{status}");
}

#[test]
fn bytes_that_come_after_our_fin_are_counted_as_discarded() {
    let mut daemon = Daemon::start(&["--drain-timeout=30s", METRICS]);
    let peer = daemon.connect();
    peer.echo(b"open");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    peer.send(&[7; 1000]);
    wait_until("they are dropped", || metrics(&daemon).value("echod_discarded_bytes_total") == 1000.0);
    drop(peer);
    assert!(daemon.wait_exit(TIMEOUT).success());
}

#[test]
fn an_idle_daemon_with_an_endpoint_sleeps() {
    let daemon = Daemon::start(&[METRICS]);
    daemon.connect().echo(&pattern(1, 100));
    metrics(&daemon);
    let turns = metrics(&daemon).value("echod_turns_total");
    let cpu = daemon.cpu_time_during(Duration::from_secs(2));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU while nothing happens");
    let turned = metrics(&daemon).value("echod_turns_total") - turns;
    assert!(turned < 20.0, "{turned} turns while nothing happens");
}
