//! Invalid HTTP: it gets the right status, and neither crashes nor blocks nor leaks.

use std::time::{Duration, Instant};

use crate::http::{endpoint, get, receive, send_request};
use crate::support::{Client, Daemon, Random, pattern, wait_until};

const METRICS: &str = "--metrics=127.0.0.1:0";

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn each_invalid_request_gets_its_status() {
    let daemon = Daemon::start(&[METRICS]);
    let host = "Host: echod\r\n";
    for (status, request) in [
        (404, format!("GET / HTTP/1.1\r\n{host}\r\n")),
        (404, format!("GET /metrics/ HTTP/1.1\r\n{host}\r\n")),
        (404, format!("GET /../metrics HTTP/1.1\r\n{host}\r\n")),
        (405, format!("POST /metrics HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\nhello")),
        (405, format!("PUT /healthz HTTP/1.1\r\n{host}\r\n")),
        (405, format!("get /healthz HTTP/1.1\r\n{host}\r\n")),
        (400, "GET /metrics HTTP/1.1\r\n\r\n".into()),
        (400, "GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into()),
        (400, format!("GET  /metrics HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /metrics HTTP/3.0\r\n{host}\r\n")),
        (400, format!("GET /metrics HTTP/1.1\r\n{host}no colon\r\n\r\n")),
        (400, "GET /metrics\r\n".into()),
        (400, "hello\r\n".into()),
        (400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        (431, format!("GET /metrics HTTP/1.1\r\n{host}{}\r\n", "a: b\r\n".repeat(1000))),
        (431, format!("GET /metrics HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(10_000))),
        (431, format!("GET /{} HTTP/1.1\r\n{host}\r\n", "x".repeat(10_000))),
    ] {
        let shown = &request[..request.len().min(60)];
        let response = send_request(&daemon, &request);
        assert_eq!(response.status, status, "{shown:?}");
        assert_eq!(response.header("connection"), "close", "{shown:?}");
        assert_eq!(response.header("content-length"), response.body.len().to_string(), "{shown:?}");
        assert_eq!(response.headers.get("allow").is_some_and(|allow| allow == "GET, HEAD"), status == 405, "{shown:?}");
    }
    assert_eq!(get(&daemon, "/healthz").status, 200);
}

#[test]
fn tls_hello_and_binary_data_are_answered_at_once() {
    let daemon = Daemon::start(&[METRICS]);
    let start = Instant::now();
    for request in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[0; 100], &[0xff; 100]] {
        assert_eq!(send_request(&daemon, request).status, 400, "{request:?}");
    }
    assert!(start.elapsed() < REQUEST_TIMEOUT, "invalid HTTP should be answered at once");
}

#[test]
fn endless_headers_end_at_8_kib() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    client.send(b"GET /metrics HTTP/1.1\r\nHost: echod\r\nX: ");
    let mut sent = 0;
    while sent < 100_000 && client.try_send(&[b'x'; 100]).is_ok() {
        sent += 100;
    }
    assert_eq!(receive(&client).status, 431);
}

#[test]
fn first_of_pipelined_requests_is_answered_without_reset() {
    let daemon = Daemon::start(&[METRICS]);
    let request = "GET /healthz HTTP/1.1\r\nHost: echod\r\n\r\n";
    let response =
        send_request(&daemon, request.to_owned() + &"GET /metrics HTTP/1.1\r\nHost: echod\r\n\r\n".repeat(3000));
    assert_eq!((response.status, response.body.as_str()), (200, "ok\n"));
}

#[test]
fn unread_body_does_not_destroy_the_response() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    client.send(b"POST /metrics HTTP/1.1\r\nHost: echod\r\nContent-Length: 500000\r\n\r\n");
    client.send(&vec![b'x'; 500_000]);
    assert_eq!(receive(&client).status, 405);
}

#[test]
fn endless_sender_after_the_response_is_closed() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    let start = Instant::now();
    while client.try_send(&[b'x'; 60_000]).is_ok() {
        assert!(start.elapsed() < REQUEST_TIMEOUT, "the limit of discarded bytes should end this, not the timeout");
    }
    assert_eq!(get(&daemon, "/healthz").status, 200);
}

/// Returns 16 clients that stall, each at a different point of its request.
fn stalled_clients(daemon: &Daemon) -> Vec<Client> {
    let beginnings: [&[u8]; 8] = [
        b"",
        b"G",
        b"GET /metrics HTTP/1.1\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: echod\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: echod\r\nContent-Length: 100\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01",
    ];
    let stalled = beginnings.iter().cycle().take(16).map(|beginning| {
        let client = Client::connect_with_small_buffers(endpoint(daemon));
        client.send(beginning);
        client
    });
    stalled.collect()
}

#[test]
fn stalled_clients_block_neither_echo_nor_requests() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let start = Instant::now();
    let stalled = stalled_clients(&daemon);
    // All slots are taken: the oldest client makes way, whatever it waits for.
    for _ in 0..2 * stalled.len() {
        assert_eq!(get(&daemon, "/healthz").status, 200);
    }
    assert!(start.elapsed() < REQUEST_TIMEOUT, "answered after {:?}", start.elapsed());

    let start = Instant::now();
    let stalled = stalled_clients(&daemon);
    let peer = daemon.connect();
    peer.exchange(&pattern(1, 1_000_000));
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU while 16 clients stall");
    for client in stalled {
        let _ = client.read_until_closed(); // By FIN or by reset, each connection has ended.
    }
    let waited = start.elapsed();
    let bounds = REQUEST_TIMEOUT - Duration::from_millis(100)..REQUEST_TIMEOUT + Duration::from_secs(2);
    assert!(bounds.contains(&waited), "the last one was closed after {waited:?}");
    assert_eq!(get(&daemon, "/healthz").status, 200);
}

#[test]
fn slow_request_is_closed_after_5_s() {
    let daemon = Daemon::start(&[METRICS]);
    let client = Client::connect(endpoint(&daemon));
    let start = Instant::now();
    client.send(b"GET /metrics HTTP/1.1\r\nHost: echod\r\nX: ");
    while client.try_send(b"x").is_ok() {
        assert!(start.elapsed() < 2 * REQUEST_TIMEOUT, "still open after {:?}", start.elapsed());
        client.wait_for(rustix::event::PollFlags::IN, Duration::from_millis(100));
    }
    assert!(start.elapsed() > REQUEST_TIMEOUT - Duration::from_millis(100), "closed after {:?}", start.elapsed());
    assert_eq!(get(&daemon, "/healthz").status, 200);
}

#[test]
fn endpoint_survives_arbitrary_input_without_leaks() {
    const SEED: u64 = 0x6563_686f_6420_0001;
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    get(&daemon, "/metrics");
    let peer = daemon.connect();
    peer.echo(b"after the iteration that answered the request");
    let before = (daemon.descriptors().len(), daemon.memory());
    let mut random = Random::new(SEED);
    let words: [&[u8]; 12] = [
        b"GET ",
        b"HEAD ",
        b"/metrics",
        b"/healthz",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b": ",
        b"Host",
        b"\0",
        b"\xff",
        b"a",
    ];
    for round in 0..1500 {
        let client = Client::connect(endpoint(&daemon));
        let mut request = Vec::new();
        for _ in 0..random.between(0, 30) {
            request.extend_from_slice(words[random.between(0, words.len() - 1)]);
        }
        let _ = client.try_send(&request);
        match random.between(0, 3) {
            0 => client.reset(),
            1 => drop(client),
            2 => {
                client.send_fin();
                let (response, _) = client.read_until_closed();
                assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 "), "round {round}, seed {SEED:#x}");
            }
            _ => {
                client.send_fin();
                drop(client);
            }
        }
    }
    assert_eq!(get(&daemon, "/healthz").status, 200);
    peer.echo(b"the echo works as well");
    wait_until("all descriptors are closed", || daemon.descriptors().len() <= before.0);
    let grown = daemon.memory().saturating_sub(before.1);
    assert!(grown < 256 * 1024, "memory grew by {grown} bytes, seed {SEED:#x}");
}
