//! The generator against servers that alter, lose, delay or withhold bytes, and its loops against servers that stall.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::generator::{Address, Clients, Pace, Pattern, Plan, REPLY_TIMEOUT, Sample, churn};

/// Serves each connection in a thread until the test process exits. Passes the connection's number to `serve`.
pub fn serve_with(serve: impl Fn(usize, TcpStream) + Send + Sync + Copy + 'static) -> Address {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let stream = stream.expect("accepted");
            stream.set_nodelay(true).expect("a TCP socket");
            thread::spawn(move || serve(number, stream));
        }
    });
    address.into()
}

/// Echoes until end of file, each part as `change` leaves it. Its first argument is the position of the part.
pub fn echo(mut stream: TcpStream, mut change: impl FnMut(u64, &mut Vec<u8>)) {
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

/// Runs four connections from connect to FIN.
fn run(address: Address, plan: &Plan, reply_timeout: Duration) -> crate::generator::Result<Sample<()>> {
    let mut clients = Clients::new(100, false)?.with_reply_timeout(reply_timeout);
    clients.connect(&address, 4)?;
    let sample = clients.run(plan, || ())?;
    clients.finish()?;
    Ok(sample)
}

/// Returns the error message of a run that must fail.
#[track_caller]
fn failure(address: Address) -> String {
    run(address, &CLOSED, Duration::from_millis(300)).err().expect("the run should fail").to_string()
}

#[test]
fn honest_server_passes() {
    let sample =
        run(serve_with(|_, stream| echo(stream, |_, _| ())), &CLOSED, REPLY_TIMEOUT).expect("the run should succeed");
    assert!(sample.all_echoes > 0 && sample.all_echoes >= sample.echoes);
    assert_eq!(sample.latency.len(), sample.all_echoes - 4 * 4, "all but the first messages are sent in the window");
}

#[test]
fn split_and_merged_echoes_pass() {
    let address = serve_with(|_, mut stream| {
        let mut buffer = vec![0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            for piece in buffer[..count].chunks(7) {
                stream.write_all(piece).expect("the client reads");
            }
        }
    });
    run(address, &CLOSED, REPLY_TIMEOUT).expect("the run should succeed");
}

#[test]
fn wrong_bit_fails_with_its_position() {
    let address = serve_with(|number, stream| {
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
fn swapped_clients_fail() {
    // Answers every client with the bytes of the first client.
    let address = serve_with(|_, stream| {
        echo(stream, |position, bytes| *bytes = Pattern::new().stretch(0, position, bytes.len() as u64).to_vec());
    });
    let failure = failure(address);
    assert!(failure.contains("byte 0 came back as"), "{failure}");
}

#[test]
fn lost_message_fails() {
    let address = serve_with(|_, stream| {
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
fn missing_last_byte_fails() {
    // Each answer lacks its last byte, which is sent before the next answer: only the end is wrong.
    let address = serve_with(|_, stream| {
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
fn extra_byte_fails() {
    let address = serve_with(|_, stream| echo(stream, |_, bytes| bytes.push(0)));
    let failure = failure(address);
    assert!(failure.contains("1 bytes more than were sent"), "{failure}");
}

#[test]
fn extra_byte_after_last_echo_fails() {
    let address = serve_with(|_, mut stream| {
        echo(stream.try_clone().expect("a descriptor"), |_, _| ());
        stream.write_all(b"!").expect("the client still reads");
    });
    let failure = failure(address);
    assert!(failure.contains("1 bytes more than were sent"), "{failure}");
}

#[test]
fn early_close_fails() {
    let address = serve_with(|number, stream| {
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
fn dead_client_among_busy_ones_fails() {
    let address = serve_with(|number, stream| {
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
fn unanswered_fin_fails() {
    let address = serve_with(|_, stream| {
        echo(stream.try_clone().expect("a descriptor"), |_, _| ());
        std::mem::forget(stream); // Never closes.
    });
    let failure = failure(address);
    assert!(failure.contains("the server does not answer a FIN"), "{failure}");
}

#[test]
fn missing_server_fails() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let failure = failure(address.into());
    assert!(failure.contains("cannot connect: Connection refused"), "{failure}");
}

/// Runs churn against a server.
fn churn(address: Address) -> crate::generator::Result<Sample<()>> {
    churn::churn(&address, 3, 64, false, (Duration::ZERO, Duration::from_millis(50)), || ())
}

#[test]
fn churn_counts_whole_connections() {
    let sample = churn(serve_with(|_, stream| echo(stream, |_, _| ()))).expect("the run should succeed");
    // On a busy machine the first connection may end after the window.
    assert!(sample.all_echoes > 0 && sample.all_echoes >= sample.latency.len());
}

#[test]
fn churn_detects_wrong_and_missing_byte() {
    let wrong = churn(serve_with(|_, stream| echo(stream, |_, bytes| bytes[5] ^= 1))).err().expect("byte 5 is wrong");
    assert!(wrong.to_string().contains("byte 5 came back as"), "{wrong}");
    let short = churn(serve_with(|_, stream| {
        echo(stream.try_clone().expect("a descriptor"), |_, bytes| bytes.truncate(63));
    }));
    // The server waits for more input, and so does the client.
    assert!(short.err().expect("a byte is missing").to_string().contains("63 of 64 bytes"));
}

/// An honest server that sleeps once, for half a second.
fn server_with_a_stall() -> Address {
    serve_with(|_, stream| {
        let mut slept = false;
        echo(stream, |position, _| {
            if position >= 2_000 && !slept {
                slept = true;
                thread::sleep(Duration::from_millis(500)); // The stall that the test is about.
            }
        });
    })
}

/// Returns how many messages of 100 bytes took longer than 100 ms, and how many there were.
fn slow_messages(pace: Pace) -> (u64, u64) {
    let plan = Plan { pace, warm_up: Duration::ZERO, window: Duration::from_secs(1) };
    let sample = run(server_with_a_stall(), &plan, REPLY_TIMEOUT).expect("the run should succeed");
    (sample.latency.count_between(100_000_000, u64::MAX), sample.latency.len())
}

#[test]
fn open_loop_counts_all_messages_due_in_stall() {
    let (slow, all) = slow_messages(Pace::Open { rate: 400.0 });
    assert!((399..=401).contains(&all), "every due message should be counted: {all}");
    // 400 ms of the stall, 100 messages a second and connection, four connections: 160.
    assert!((150..=300).contains(&slow), "{slow} of {all}");
}

#[test]
fn closed_loop_hides_stall() {
    // The reason for the open loop: a stall of half a second delays one message per connection.
    let (slow, _) = slow_messages(Pace::Closed { in_flight: 1 });
    assert!((4..=20).contains(&slow), "{slow}");
}

#[test]
fn open_loop_keeps_its_rate() {
    let pace = Pace::Open { rate: 1000.0 };
    let plan = Plan { pace, warm_up: Duration::from_millis(100), window: Duration::from_millis(300) };
    let sample =
        run(serve_with(|_, stream| echo(stream, |_, _| ())), &plan, REPLY_TIMEOUT).expect("the run should succeed");
    // The warm-up ends when the loop checks the time, so it may be longer. One message more or less fits into the window.
    assert!(sample.all_echoes >= 400, "{} in warm-up and window", sample.all_echoes);
    assert!((299..=301).contains(&sample.latency.len()), "{} due in the window", sample.latency.len());
}
