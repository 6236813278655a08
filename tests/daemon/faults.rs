//! System calls that fail, by strace(1), which answers the daemon's calls in the kernel's place.
//!
//! Some of these no peer can bring about on loopback, and each of them happens in the world. Skipped where strace
//! is missing or may not trace.

use crate::support::{Client, Daemon, has_program, pattern, skip_for_want_of};

/// The daemon under `strace -e inject=…`, or nothing where that does not work. With -D strace is the grandchild, and
/// the daemon keeps the process ID that we know.
fn with_faults(injections: &[&str]) -> Option<Daemon> {
    let can_trace = || {
        let mut command = std::process::Command::new("strace");
        command.args(["-D", "-o", "/dev/null", "true"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !has_program("strace") || !can_trace() {
        skip_for_want_of("an strace that may trace");
        return None;
    }
    let injections = injections.iter().flat_map(|injection| ["-e", injection]);
    let wrapper: Vec<&str> = ["strace", "-D", "-qq", "-o", "/dev/null"].into_iter().chain(injections).collect();
    Some(Daemon::with(&[]).through(&wrapper).start())
}

#[test]
fn an_error_of_one_newcomer_is_none_of_the_listener() {
    // accept(2), "Error handling": errors that are pending on the new connection come out of accept.
    for error in ["ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EPERM"] {
        let Some(mut daemon) = with_faults(&[&format!("inject=accept4:error={error}:when=1..3")]) else { return };
        let client = daemon.connect();
        client.echo(error.as_bytes());
        daemon.terminate_when_finished(client);
    }
}

#[test]
fn want_of_descriptors_or_memory_is_a_pause() {
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
fn an_interrupted_call_is_made_again() {
    let interrupted = ["read", "write", "recvfrom", "sendto", "accept4", "epoll_wait"];
    let injections = interrupted.map(|call| format!("inject={call}:error=EINTR:when=20+5"));
    let injections: Vec<&str> = injections.iter().map(String::as_str).collect();
    let Some(mut daemon) = with_faults(&injections) else { return };
    for round in 0..20 {
        let client = daemon.connect();
        client.echo(&pattern(round, 1000));
        client.finish();
        client.expect_fin();
    }
    daemon.terminate();
}

#[test]
fn an_error_of_one_connection_ends_no_other() {
    let Some(mut daemon) = with_faults(&["inject=sendto,write:error=EHOSTUNREACH:when=40"]) else { return };
    let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.send(b"hello"));
    let ended = clients.iter().filter(|client| client.read_exactly(5).is_err()).count();
    assert!(ended <= 1, "{ended} connections have ended for the error of one");
    daemon.connect().echo(b"served");
    drop(clients);
    daemon.terminate();
}
