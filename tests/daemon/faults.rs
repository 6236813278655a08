//! System calls that fail: strace(1) makes the daemon's calls return errors that the kernel would not
//! return on loopback, but does return in production.
//!
//! The tests are skipped if strace is missing or is not allowed to trace.
//!
//! How the daemon handles each error, which the tests below verify:
//!
//! | | recvfrom | sendto | accept4 | epoll_wait |
//! |---|---|---|---|---|
//! | EINTR | retry at once | retry at once | retry at once | empty iteration |
//! | EAGAIN | wait for an event | wait for an event | wait for an event | exit |
//! | ECONNABORTED | close the connection | close the connection | accept the next one | exit |
//! | EMFILE | close the connection | close the connection | pause accepting | exit |
//! | ENOBUFS, ENOMEM | retry later | retry later | pause accepting | exit |
//!
//! For epoll_wait(2), EINTR is the only temporary error. Any other means that the poller is unusable:
//! the daemon prints one line and exits with status 1.

use std::io;
use std::process::Command;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::support::{Client, Daemon, Signal, TIMEOUT, has_program, pattern, skip_missing};

/// Starts the daemon under `strace -e inject=…`, or skips the test and returns `None` if strace does
/// not work here.
///
/// With -D, strace runs as a detached grandchild, and the daemon itself is the child that we start.
fn with_faults(injections: &[&str]) -> Option<Daemon> {
    let can_trace = || {
        let mut command = Command::new("strace");
        command.args(["-D", "-o", "/dev/null", "true"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !has_program("strace") || !can_trace() {
        skip_missing("strace with permission to trace");
        return None;
    }
    let injections = injections.iter().flat_map(|injection| ["-e", injection]);
    let wrapper: Vec<&str> = ["strace", "-D", "-qq", "-o", "/dev/null"].into_iter().chain(injections).collect();
    Some(Daemon::with(&[]).through(&wrapper).start())
}

#[test]
fn accept_error_of_one_connection_spares_the_listener() {
    // accept(2), "Error handling": accept returns errors that are already pending on the new connection.
    for error in ["ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EPERM"] {
        let Some(mut daemon) = with_faults(&[&format!("inject=accept4:error={error}:when=1..3")]) else { return };
        let client = daemon.connect();
        client.echo(error.as_bytes());
        daemon.close_and_terminate(client);
    }
}

#[test]
fn resource_exhaustion_pauses_accepting() {
    for error in ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"] {
        let Some(mut daemon) = with_faults(&[&format!("inject=accept4:error={error}:when=1..3")]) else { return };
        let clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
        // No other connection is opened or closed meanwhile, so the daemon retries by its own timer.
        clients.iter().for_each(|client| client.echo(error.as_bytes()));
        drop(clients);
        daemon.terminate();
    }
}

#[test]
fn interrupted_calls_are_retried() {
    let interrupted = ["read", "write", "recvfrom", "sendto", "accept4", "epoll_wait"];
    let injections = interrupted.map(|call| format!("inject={call}:error=EINTR:when=20+5"));
    let injections: Vec<&str> = injections.iter().map(String::as_str).collect();
    let Some(mut daemon) = with_faults(&injections) else { return };
    for round in 0..20 {
        let client = daemon.connect();
        client.echo(&pattern(round, 1000));
        client.send_fin();
        client.expect_fin();
    }
    daemon.terminate();
}

#[test]
fn error_closes_only_its_own_connection() {
    for call in ["recvfrom", "sendto"] {
        for error in ["EHOSTUNREACH", "ECONNABORTED", "EMFILE"] {
            let Some(mut daemon) = with_faults(&[&format!("inject={call}:error={error}:when=40")]) else { return };
            let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
            clients.iter().for_each(|client| client.send(b"hello"));
            let closed = clients.iter().filter(|client| client.read_exactly(5).is_err()).count();
            assert_eq!(closed, 1, "one {error} from {call} should close one connection, not {closed}");
            daemon.connect().echo(b"served");
            drop(clients);
            daemon.terminate();
        }
    }
}

#[test]
fn out_of_memory_read_or_write_is_retried() {
    // No event reports that memory is available again.
    for error in ["ENOBUFS", "ENOMEM"] {
        let read = format!("inject=recvfrom:error={error}:when=3+7");
        let write = format!("inject=sendto:error={error}:when=2+5");
        let Some(mut daemon) = with_faults(&[&read, &write]) else { return };
        let clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
        for round in 0..5 {
            let message = |number: usize| pattern((10 * round + number) as u64, 1000);
            clients.iter().enumerate().for_each(|(number, client)| client.send(&message(number)));
            clients.iter().enumerate().for_each(|(number, client)| client.expect(&message(number)));
        }
        clients.iter().for_each(Client::send_fin);
        clients.iter().for_each(Client::expect_fin);
        daemon.terminate();
    }
}

#[test]
fn spurious_eagain_loses_no_bytes() {
    // The call returns EAGAIN although there is data to read or room to write. The daemon must recover at the next
    // event of that descriptor.
    for call in ["recvfrom", "sendto", "accept4"] {
        let Some(mut daemon) = with_faults(&[&format!("inject={call}:error=EAGAIN:when=2+3")]) else { return };
        let other = daemon.connect();
        let client = daemon.connect();
        let bytes = pattern(1, 2000);
        let mut echoed = 0;
        let mut chunks = bytes.chunks(100);
        while echoed < bytes.len() {
            if let Some(chunk) = chunks.next() {
                client.send(chunk);
            } else {
                client.send_fin(); // One more event, in case the daemon still needs one.
                client.expect(&bytes[echoed..]);
                client.expect_fin();
                break;
            }
            other.send(b"."); // An event of another connection.
            drop(daemon.connect()); // An event of the listener.
            while client.wait_for(PollFlags::IN, Duration::from_millis(20)) && echoed < bytes.len() {
                client.expect(&bytes[echoed..echoed + 1]);
                echoed += 1;
            }
        }
        drop((client, other));
        daemon.terminate();
    }
}

#[test]
fn failed_registration_closes_only_that_connection() {
    // ENOSPC: the limit on epoll watches is reached. The first calls register the signals and the listener.
    for error in ["ENOSPC", "ENOMEM"] {
        let Some(mut daemon) = with_faults(&[&format!("inject=epoll_ctl:error={error}:when=5")]) else { return };
        let clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.send(b"hello"));
        let refused = clients.iter().filter(|client| client.read_exactly(5).is_err()).count();
        assert_eq!(refused, 1, "one failed registration should close one connection, not {refused}");
        daemon.wait_for_log(|line| line.contains("cannot register a connection"));
        daemon.signal(Signal::USR1);
        daemon.wait_for_log(|line| line.contains("; 1 accept errors"));
        daemon.connect().echo(b"accepting goes on");
        drop(clients);
        daemon.terminate();
    }
}

#[test]
fn unexpected_poll_error_ends_the_daemon() {
    for (error, errno) in [
        ("ENOMEM", Errno::NOMEM),
        ("ENOBUFS", Errno::NOBUFS),
        ("EMFILE", Errno::MFILE),
        ("ECONNABORTED", Errno::CONNABORTED),
        ("EAGAIN", Errno::AGAIN),
        ("EBADF", Errno::BADF),
    ] {
        // Only the sixth call fails, so a daemon that calls again would survive.
        let Some(mut daemon) = with_faults(&[&format!("inject=epoll_wait:error={error}:when=6")]) else { return };
        let client = daemon.connect();
        // Each byte costs a call of epoll_wait(2), so the daemon exits before it has echoed twenty.
        let echoes = (0..20).take_while(|_| client.try_send(b".").is_ok() && client.read_exactly(1).is_ok()).count();
        assert!((1..20).contains(&echoes), "{error} should end the daemon after a few echoes, not after {echoes}");
        assert_eq!(daemon.wait_exit(TIMEOUT).code(), Some(1), "{error} should end the daemon with status 1");
        let log = daemon.whole_stderr();
        let line = format!("echod: event loop failed: {}", io::Error::from(errno));
        assert_eq!(log.lines().last(), Some(line.as_str()), "the last line of stderr should name the error:\n{log}");
        assert_eq!(log.matches("event loop failed").count(), 1, "the error should be printed once:\n{log}");
        assert!(!log.contains("panicked"), "the daemon should not panic:\n{log}");
    }
}

#[test]
fn signal_is_handled_if_its_pipe_write_fails() {
    // The handler of signal-hook writes to a socket pair. It is the first call of sendto(2) here, because no client has connected.
    let Some(mut daemon) = with_faults(&["inject=sendto:error=ENOBUFS:when=1"]) else { return };
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_exit(TIMEOUT).success());
}
