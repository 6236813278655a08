//! System calls that fail, by strace(1), which answers the daemon's calls in the kernel's place.
//!
//! Some of these no peer can bring about on loopback, and each of them happens in the world. Skipped where strace
//! is missing or may not trace.
//!
//! What each answer leads to; a test below shows each:
//!
//! | | recvfrom | sendto | accept4 | epoll_wait |
//! |---|---|---|---|---|
//! | EINTR | again | again | again | an empty turn |
//! | EAGAIN | the next event | the next event | the next event | the end |
//! | ECONNABORTED | that connection ends | that connection ends | the next newcomer | the end |
//! | EMFILE | that connection ends | that connection ends | a pause | the end |
//! | ENOBUFS, ENOMEM | after a while | after a while | a pause | the end |
//!
//! epoll_wait(2) knows EINTR for an answer that passes. Anything else is a poller that is broken: one line, and status 1.

use std::io;
use std::process::Command;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::support::{Client, Daemon, DaemonBuilder, Signal, TIMEOUT, has_program, pattern, skip_missing};

/// The daemon under `strace -e inject=…`, or nothing where that does not work. With -D strace is the grandchild, and
/// the daemon keeps the process ID that we know.
fn with_faults(injections: &[&str]) -> Option<Daemon> {
    Some(start_with_faults(injections)?.start())
}

fn start_with_faults(injections: &[&str]) -> Option<DaemonBuilder> {
    let can_trace = || {
        let mut command = Command::new("strace");
        command.args(["-D", "-o", "/dev/null", "true"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !has_program("strace") || !can_trace() {
        skip_missing("an strace that may trace");
        return None;
    }
    let injections = injections.iter().flat_map(|injection| ["-e", injection]);
    let wrapper: Vec<&str> = ["strace", "-D", "-qq", "-o", "/dev/null"].into_iter().chain(injections).collect();
    Some(Daemon::with(&[]).through(&wrapper))
}

#[test]
fn accept_error_of_one_connection_spares_the_listener() {
    // accept(2), "Error handling": errors that are pending on the new connection come out of accept.
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
        // Nobody else comes and nobody goes: the daemon tries again by itself.
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
            let ended = clients.iter().filter(|client| client.read_exactly(5).is_err()).count();
            assert_eq!(ended, 1, "{ended} connections have ended for the {error} of one {call}");
            daemon.connect().echo(b"served");
            drop(clients);
            daemon.terminate();
        }
    }
}

#[test]
fn out_of_memory_read_or_write_is_retried() {
    // No event will say that there is memory again.
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
    // The kernel has the bytes, or the room, and says EAGAIN: the next event, whatever it is for, makes it good.
    for call in ["recvfrom", "sendto", "accept4"] {
        let Some(mut daemon) = with_faults(&[&format!("inject={call}:error=EAGAIN:when=2+3")]) else { return };
        let poked = daemon.connect();
        let client = daemon.connect();
        let bytes = pattern(1, 2000);
        let mut answered = 0;
        let mut pokes = bytes.chunks(100);
        while answered < bytes.len() {
            if let Some(poke) = pokes.next() {
                client.send(poke);
            } else {
                client.send_fin(); // One more event, if it is still needed.
                client.expect(&bytes[answered..]);
                client.expect_fin();
                break;
            }
            poked.send(b"."); // Somebody else's event.
            drop(daemon.connect()); // And one of the listener.
            while client.wait_for(PollFlags::IN, Duration::from_millis(20)) && answered < bytes.len() {
                client.expect(&bytes[answered..answered + 1]);
                answered += 1;
            }
        }
        drop((client, poked));
        daemon.terminate();
    }
}

#[test]
fn failed_registration_closes_only_that_connection() {
    // The limit of epoll watches (ENOSPC), or of memory. The first calls are for the signals and the listener.
    for error in ["ENOSPC", "ENOMEM"] {
        let Some(mut daemon) = with_faults(&[&format!("inject=epoll_ctl:error={error}:when=5")]) else { return };
        let clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.send(b"hello"));
        let refused = clients.iter().filter(|client| client.read_exactly(5).is_err()).count();
        assert_eq!(refused, 1, "{refused} connections were closed for one that could not be registered");
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
        // The sixth only: a daemon that asked again would go on.
        let Some(start) = start_with_faults(&[&format!("inject=epoll_wait:error={error}:when=6")]) else { return };
        let mut daemon = start.start();
        let client = daemon.connect();
        // Each byte is a turn, until there is an end instead of an answer.
        let answers = (0..20).take_while(|_| client.try_send(b".").is_ok() && client.read_exactly(1).is_ok()).count();
        assert!((1..20).contains(&answers), "{answers} answers in spite of {error}");
        assert_eq!(daemon.wait_exit(TIMEOUT).code(), Some(1), "{error}");
        let log = daemon.whole_stderr();
        let line = format!("echod: cannot go on: {}", io::Error::from(errno));
        assert_eq!(log.lines().last(), Some(line.as_str()), "{log}");
        assert!(!log.contains("panicked") && log.matches("cannot go on").count() == 1, "{log}");
    }
}
