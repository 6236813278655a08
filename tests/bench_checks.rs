//! The benchmark checks servers; this checks the benchmark. Its generator meets servers that lie, and its clock
//! servers that stall.

#![allow(dead_code, reason = "the modules are the benchmark's, which uses more of them")]

#[path = "../benches/echo/churn.rs"]
mod churn;
#[path = "../benches/echo/load.rs"]
mod load;
#[path = "../benches/echo/pattern.rs"]
mod pattern;
#[path = "../benches/echo/results.rs"]
mod results;
#[path = "../benches/echo/scenarios.rs"]
mod scenarios;
#[path = "../benches/echo/server.rs"]
mod server;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use load::{Clients, PATIENCE, Pace, Plan, Sample};
use pattern::Pattern;
use results::Spread;

/// Serves each connection on a thread of its own, for as long as the test runs. Tells the server its number.
fn server(serve: impl Fn(usize, TcpStream) + Send + Sync + Copy + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let stream = stream.expect("accepted");
            stream.set_nodelay(true).expect("a TCP socket");
            thread::spawn(move || serve(number, stream));
        }
    });
    address
}

/// Echoes until the end, each stretch as `change` returns it. Its argument is where the stretch begins.
fn echo(mut stream: TcpStream, mut change: impl FnMut(u64, &mut Vec<u8>)) {
    let mut buffer = vec![0; 64 * 1024];
    let mut position = 0;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut answer = buffer[..count].to_vec();
        change(position, &mut answer);
        position += count as u64;
        if stream.write_all(&answer).is_err() {
            break;
        }
    }
}

const CLOSED: Plan =
    Plan { pace: Pace::Closed { in_flight: 4 }, warm_up: Duration::ZERO, window: Duration::from_millis(50) };

/// A whole run of four connections.
fn run(address: SocketAddr, plan: &Plan, patience: Duration) -> load::Result<Sample<()>> {
    let mut clients = Clients::new(100, false)?.with_patience(patience);
    clients.connect(address, 4)?;
    let sample = clients.run(plan, || ())?;
    clients.finish()?;
    Ok(sample)
}

/// How a run fails.
#[track_caller]
fn failure(address: SocketAddr) -> String {
    run(address, &CLOSED, Duration::from_millis(300)).err().expect("this server must not pass").to_string()
}

#[test]
fn an_honest_server_passes() {
    let sample = run(server(|_, stream| echo(stream, |_, _| ())), &CLOSED, PATIENCE).expect("every byte is right");
    assert!(sample.all_echoes > 0 && sample.all_echoes >= sample.echoes);
    assert_eq!(sample.latency.len(), sample.all_echoes - 4 * 4, "all but the first were sent in the window");
}

#[test]
fn messages_that_come_back_in_pieces_and_in_heaps_pass() {
    let address = server(|_, mut stream| {
        let mut buffer = vec![0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            for piece in buffer[..count].chunks(7) {
                stream.write_all(piece).expect("the client reads");
            }
        }
    });
    run(address, &CLOSED, PATIENCE).expect("every byte is right");
}

#[test]
fn one_wrong_bit_fails_and_the_message_says_where() {
    let address = server(|number, stream| {
        echo(stream, |position, bytes| {
            if number == 2
                && let Some(byte) = 1234_u64.checked_sub(position).and_then(|place| bytes.get_mut(place as usize))
            {
                *byte ^= 0x10;
            }
        });
    });
    let failure = failure(address);
    assert!(failure.starts_with("connection 2: byte 1234 came back as"), "{failure}");
}

#[test]
fn two_clients_that_get_each_others_bytes_fail() {
    // It answers everybody with what the first client of a pattern would have said.
    let address = server(|_, stream| {
        echo(stream, |position, bytes| *bytes = Pattern::new().stretch(0, position, bytes.len() as u64).to_vec());
    });
    let failure = failure(address);
    assert!(failure.contains("byte 0 came back as"), "{failure}");
}

#[test]
fn a_lost_message_fails() {
    let address = server(|_, stream| {
        let mut lost = false;
        echo(stream, |position, bytes| {
            if position >= 1000 && !lost {
                lost = true;
                bytes.drain(..bytes.len().min(100));
            }
        });
    });
    let failure = failure(address);
    assert!(failure.contains("came back as"), "{failure}");
}

#[test]
fn a_missing_last_byte_fails() {
    // Each answer lacks its last byte, which is put before the next one: nothing is wrong but the end.
    let address = server(|_, stream| {
        let mut kept = Vec::new();
        echo(stream, move |_, bytes| {
            bytes.splice(..0, kept.drain(..));
            kept.extend(bytes.pop());
        });
    });
    let failure = failure(address);
    assert!(failure.contains("99 of 100 bytes came back, then nothing for 0.3 s"), "{failure}");
}

#[test]
fn a_byte_too_many_fails() {
    let address = server(|_, stream| echo(stream, |_, bytes| bytes.push(0)));
    let failure = failure(address);
    assert!(failure.contains("1 bytes more than were sent"), "{failure}");
}

#[test]
fn a_byte_behind_the_last_echo_fails() {
    let address = server(|_, mut stream| {
        echo(stream.try_clone().expect("a descriptor"), |_, _| ());
        stream.write_all(b"!").expect("the client still reads");
    });
    let failure = failure(address);
    assert!(failure.contains("1 bytes more than were sent"), "{failure}");
}

#[test]
fn an_early_end_fails() {
    let address = server(|number, stream| {
        echo(stream.try_clone().expect("a descriptor"), |position, _| {
            if number == 3 && position >= 1000 {
                stream.shutdown(Shutdown::Both).expect("connected");
            }
        });
    });
    let failure = failure(address);
    assert!(failure.starts_with("connection 3: closed after "), "{failure}");
}

#[test]
fn one_dead_client_among_busy_ones_fails() {
    let address = server(|number, stream| {
        echo(stream, |position, bytes| {
            if number == 1 && position >= 1000 {
                bytes.clear();
            }
        });
    });
    let failure = failure(address);
    assert!(
        failure.starts_with("connection 1: ") && failure.ends_with("nothing for 0.3 s (and 0 more like it)"),
        "{failure}"
    );
}

#[test]
fn a_fin_that_is_not_answered_fails() {
    let address = server(|_, stream| {
        echo(stream.try_clone().expect("a descriptor"), |_, _| ());
        std::mem::forget(stream); // It stays open.
    });
    let failure = failure(address);
    assert!(failure.contains("our FIN is not answered"), "{failure}");
}

#[test]
fn a_server_that_has_gone_fails() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let failure = failure(address);
    assert!(failure.contains("cannot connect: Connection refused"), "{failure}");
}

/// A run of churn against a server.
fn churn(address: SocketAddr) -> load::Result<Sample<()>> {
    churn::churn(address, 3, 64, false, (Duration::ZERO, Duration::from_millis(50)), || ())
}

#[test]
fn churn_counts_whole_connections() {
    let sample = churn(server(|_, stream| echo(stream, |_, _| ()))).expect("every byte is right");
    // On a busy machine the first may end when the window is over.
    assert!(sample.all_echoes > 0 && sample.all_echoes >= sample.latency.len());
}

#[test]
fn churn_sees_a_wrong_byte_and_an_early_end() {
    let wrong = churn(server(|_, stream| echo(stream, |_, bytes| bytes[5] ^= 1))).err().expect("byte 5 is wrong");
    assert!(wrong.to_string().contains("byte 5 came back as"), "{wrong}");
    let short = churn(server(|_, stream| {
        echo(stream.try_clone().expect("a descriptor"), |_, bytes| bytes.truncate(63));
    }));
    // The server waits for more, and so do we.
    assert!(short.err().expect("a byte is missing").to_string().contains("63 of 64 bytes"));
}

/// An honest server that sleeps once, half a second long.
fn server_with_a_stall() -> SocketAddr {
    server(|_, stream| {
        let mut slept = false;
        echo(stream, |position, _| {
            if position >= 2_000 && !slept {
                slept = true;
                thread::sleep(Duration::from_millis(500)); // The stall that is to be seen.
            }
        });
    })
}

/// How many messages of 100 bytes took longer than a tenth of a second, and how many there were.
fn slow_ones(pace: Pace) -> (u64, u64) {
    let plan = Plan { pace, warm_up: Duration::ZERO, window: Duration::from_secs(1) };
    let sample = run(server_with_a_stall(), &plan, PATIENCE).expect("every byte is right");
    (sample.latency.count_between(100_000_000, u64::MAX), sample.latency.len())
}

#[test]
fn an_open_loop_counts_every_message_that_was_due_in_a_stall() {
    let (slow, all) = slow_ones(Pace::Open { rate: 400.0 });
    assert!((399..=401).contains(&all), "each message that was due is counted, whatever the server did: {all}");
    // 400 ms of the stall, 100 messages a second and connection, four connections: 160.
    assert!((150..=300).contains(&slow), "{slow} of {all}");
}

#[test]
fn a_closed_loop_hides_a_stall() {
    // Which is why there is an open one: a stall of half a second is one message for each connection.
    let (slow, _) = slow_ones(Pace::Closed { in_flight: 1 });
    assert!((4..=20).contains(&slow), "{slow}");
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let pace = Pace::Open { rate: 1000.0 };
    let plan = Plan { pace, warm_up: Duration::from_millis(100), window: Duration::from_millis(300) };
    let sample = run(server(|_, stream| echo(stream, |_, _| ())), &plan, PATIENCE).expect("every byte is right");
    // The warm-up ends when somebody looks, so it may be longer. One message more or less fits in where the window begins.
    assert!(sample.all_echoes >= 400, "{} in warm-up and window", sample.all_echoes);
    assert!((299..=301).contains(&sample.latency.len()), "{} due in the window", sample.latency.len());
}

#[test]
fn a_median_is_in_the_middle() {
    let spread = |values: &[f64]| Spread::of(values.iter().copied());
    assert!(spread(&[]).is_none());
    let odd = spread(&[3.0, 1.0, 2.0]).expect("three");
    assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
    assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).expect("four").median, 2.5);
}
