//! Checks the page on traps (`src/docs/traps.md`): it has each trap once, with wrong and right code, with its handling, and
//! with tests that exist.
//!
//! It also checks that each handling is needed: with the handling removed, a test has to fail.
//!
//!     cargo test --test traps -- --ignored --nocapture    # removes each of them, one after the other

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the long test reports its progress")]

#[path = "support/experiments.rs"]
mod experiments;

use std::fs;
use std::path::Path;

use experiments::Experiment;

const PAGE: &str = include_str!("../src/docs/traps.md");

/// The number of the last trap, and the numbers that are unused. A new trap gets the next number.
const LAST: u32 = 62;
const UNUSED: [u32; 3] = [34, 35, 36];

/// Returns the sections of the page, each with its number, which is its anchor, too.
fn traps() -> Vec<(u32, &'static str)> {
    let sections = PAGE.split("\n## <a id=\"t").skip(1);
    sections.map(|section| (section.split('"').next().unwrap().parse().unwrap(), section)).collect()
}

/// Returns what stands in backquotes.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn source(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// Returns whether this file has a test of this name: a function after `#[test]`, with only attributes in between.
fn has_test(source: &str, name: &str) -> bool {
    let mut lines = source.lines().map(str::trim_start);
    let function = format!("fn {name}()");
    while lines.any(|line| line == "#[test]") {
        if lines.find(|line| !line.starts_with("#[")).is_some_and(|line| line.starts_with(&function)) {
            return true;
        }
    }
    false
}

#[test]
fn each_trap_is_on_the_page_once_and_handled() {
    let numbers: Vec<u32> = traps().iter().map(|&(number, _)| number).collect();
    assert_eq!(numbers, (1..=LAST).filter(|number| !UNUSED.contains(number)).collect::<Vec<u32>>());
    for (number, section) in traps() {
        assert!(section.starts_with(&format!("{number}\"></a>T{number}. ")), "T{number}: heading and anchor differ");
        assert!(section.contains("\n**Handled:** "), "T{number} does not say how it is handled");
        let is_tested = section.contains("<details><summary>Tests</summary>\n\n- `");
        let reason =
            ["No test can change it", "There is nothing to test"].iter().any(|reason| section.contains(reason));
        assert!(is_tested || reason, "T{number} names no test");
    }
}

/// The code of a section is a few lines to compare, not a program to study.
#[test]
fn each_trap_shows_wrong_and_right_code() {
    for (number, section) in traps() {
        let block = section.split("\n```").nth(1).unwrap_or_else(|| panic!("T{number} shows no code"));
        let code = block.split_once('\n').unwrap().1.replace("# wrong", "// wrong").replace("# right", "// right");
        let (wrong, right) =
            code.split_once("\n\n// right\n").unwrap_or_else(|| panic!("T{number}: wrong, then right"));
        assert!(wrong.starts_with("// wrong\n"), "T{number} should begin with the wrong code");
        let lines = (wrong.lines().count() - 1, right.lines().count());
        assert!(lines.0 <= 3 && lines.1 <= 4, "T{number} shows {lines:?} lines: three of each are enough");
    }
}

#[test]
fn every_test_on_the_page_exists() {
    let mut missing = Vec::new();
    let mut count = 0;
    for (path, name) in spans(PAGE).filter_map(|span| span.split_once(".rs::")) {
        count += 1;
        let path = format!("{path}.rs");
        if !source(&path).is_some_and(|source| has_test(&source, name)) {
            missing.push(format!("{path}::{name}"));
        }
    }
    assert!(count > 60, "found only {count} tests: has the format of the page changed?");
    assert!(missing.is_empty(), "named on the page, but not in the tree: {missing:#?}");
}

#[test]
fn every_file_on_the_page_exists() {
    let is_path = |span: &&str| ["src/", "tests/", "benches/"].iter().any(|top| span.starts_with(top));
    for path in spans(PAGE).filter(is_path).filter(|span| !span.contains("::")) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{path} is named, but does not exist");
    }
}

// ---- whether each handling is needed ----

/// For each trap, its handling or the parts of it: the number of the trap, the file, the code to replace, its replacement, and
/// the test that then fails.
const HANDLINGS: &[(u32, &str, &str, &str, &str)] = &[
    (
        1,
        "src/event_loop/connection.rs",
        "if count < limit && self.readable == Readable::UntilShort",
        "if count < limit && self.readable != Readable::No",
        "fin_with_last_bytes_is_not_missed",
    ),
    (
        1,
        "src/event_loop/readiness.rs",
        "} else if broken || event.is_priority() {",
        "} else if broken {",
        "bytes_after_urgent_mark_are_not_missed",
    ),
    (
        1,
        "src/event_loop/transport.rs",
        "&& matches!(self, Stream::Tcp(_))",
        "",
        "data_after_passed_descriptors_is_not_missed",
    ),
    (
        2,
        "src/event_loop/connections.rs",
        "Outcome::Requeue => self.requeue(id),",
        "Outcome::Requeue => {}",
        "leftover_data_is_served_without_a_new_edge",
    ),
    (
        2,
        "src/event_loop/connections.rs",
        "self.light.drain(..count);",
        "self.light.clear();",
        "connections_becoming_ready_mid_iteration_wait_for_the_next",
    ),
    (
        3,
        "src/event_loop/connection.rs",
        "if left.reads == 0 || left.bytes == 0 {",
        "left.reads += 1;
            if left.bytes == 0 {",
        "random_schedules_lose_no_byte_and_no_wakeup",
    ),
    (
        4,
        "src/event_loop/connection.rs",
        "self.readable = self.readable.merge(readable);",
        "if !self.is_stalled() { self.readable = self.readable.merge(readable); }",
        "edge_during_stall_is_remembered",
    ),
    (
        5,
        "src/event_loop/server.rs",
        "self.connections.mark_ready(id, readable, writable);",
        "if let Some(it) = self.connections.get_mut(id) {
            let _ = self.poll.registry().reregister(&mut it.stream, event.token(), INTEREST);
        }
        self.connections.mark_ready(id, readable, writable);",
        "idle_daemon_sleeps_and_uses_no_cpu",
    ),
    (
        6,
        "src/event_loop/server.rs",
        "self.connections.mark_ready(id, readable, writable);",
        "if event.is_read_closed() && self.connections.get_mut(id).is_some() { drop(self.connections.remove(id)); return; }
         self.connections.mark_ready(id, readable, writable);",
        "half_close_leaves_the_other_direction_open",
    ),
    (
        7,
        "src/event_loop/server.rs",
        "self.connections.mark_ready(id, readable, writable);",
        "if event.is_write_closed() { return; }
         self.connections.mark_ready(id, readable, writable);",
        "peer_hangup_leaks_no_descriptors",
    ),
    (
        8,
        "src/event_loop/connections.rs",
        "pub fn mark_ready(&mut self, id: ConnectionId, readable: Readable, writable: bool) {
        let connection = self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation);",
        "pub fn mark_ready(&mut self, id: ConnectionId, readable: Readable, writable: bool) {
        let connection = self.slab.get_mut(id.slot as usize);",
        "stale_event_for_reused_slot_is_ignored",
    ),
    (8, "src/event_loop/token.rs", "(id.generation as usize) << 32", "1 << 32", "reused_slot_has_another_token"),
    (
        10,
        "src/event_loop/server.rs",
        "Err(error) if error.kind() == io::ErrorKind::Interrupted => {",
        "Err(error) if error.kind() == io::ErrorKind::TimedOut => {",
        "interrupted_calls_are_retried",
    ),
    (
        10,
        "src/event_loop/connection.rs",
        "Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = Readable::No;
                Ok(None)",
        "Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.readable = Readable::No;
                Ok(None)",
        "spurious_eagain_loses_no_bytes",
    ),
    (
        11,
        "src/event_loop/outcome.rs",
        "_ => Outcome::Closed(CloseReason::Error(error.kind())),",
        "_ => panic!(\"{error}\"),",
        "error_closes_only_its_own_connection",
    ),
    (
        11,
        "src/event_loop/outcome.rs",
        "Some(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::CONNABORTED) => {
                Outcome::Closed(CloseReason::Reset)
            }",
        "",
        "reset_is_logged_at_debug_level",
    ),
    (
        12,
        "src/event_loop/pending.rs",
        "self.written += count;",
        "self.written = count;",
        "random_schedules_lose_no_byte_and_no_wakeup",
    ),
    (
        13,
        "src/event_loop/deadlines.rs",
        "self.arm_at(slot, now + timeout + 1);",
        "let _ = (slot, now, timeout);",
        "idle_half_closed_stalled_connection_is_closed",
    ),
    (
        13,
        "src/event_loop/server/shutdown.rs",
        "} else if self.drain_deadline <= self.clock.ms()",
        "} else if self.drain_deadline == 0",
        "drain_timeout_closes_remaining_connections",
    ),
    (
        14,
        "src/event_loop/acceptor.rs",
        "self.next_listener = index + 1;",
        "self.next_listener = index + 1; self.listeners[index].ready = false;",
        "burst_of_connections_in_one_event_is_accepted",
    ),
    (
        15,
        "src/listen/listener.rs",
        "Errno::NETDOWN | Errno::NOPROTOOPT | Errno::HOSTDOWN | Errno::HOSTUNREACH => AcceptError::Aborted,",
        "Errno::NETDOWN | Errno::NOPROTOOPT | Errno::HOSTDOWN | Errno::HOSTUNREACH => AcceptError::Fatal,",
        "accept_error_of_one_connection_spares_the_listener",
    ),
    (
        16,
        "src/event_loop/acceptor.rs",
        "self.resume_at = now + PAUSE_MS;",
        "let _ = now;",
        "descriptor_exhaustion_keeps_serving_without_spinning",
    ),
    (
        16,
        "src/event_loop/acceptor.rs",
        "if self.resume_at <= now {",
        "if self.resume_at == 0 && now > 0 {",
        "descriptor_exhaustion_retries_accept_within_a_second",
    ),
    (
        16,
        "src/event_loop/server.rs",
        "self.acceptor.resume();",
        "",
        "closed_connection_ends_descriptor_exhaustion_at_once",
    ),
    (
        17,
        "src/event_loop/acceptor.rs",
        "if !mem::replace(&mut self.paused, true) {",
        "warn!(\"pausing accepts\");
        if !mem::replace(&mut self.paused, true) {",
        "descriptor_exhaustion_keeps_serving_without_spinning",
    ),
    (
        18,
        "src/event_loop/acceptor.rs",
        "self.budget -= 1;",
        "",
        "burst_of_connections_is_accepted_in_portions",
    ),
    (
        19,
        "src/event_loop/acceptor.rs",
        "if !mem::replace(&mut self.limit_logged, true) {",
        "self.any_ready = false;
         if !mem::replace(&mut self.limit_logged, true) {",
        "connection_limit_pauses_and_resumes_accepting",
    ),
    (
        20,
        "src/listen/socket.rs",
        "socket.set_reuse_port(true)?;",
        "",
        "reuse_port_lets_processes_share_a_port",
    ),
    (
        21,
        "src/event_loop/acceptor.rs",
        "(self.draining, self.any_ready) = (true, true);",
        "self.listeners.clear();",
        "stopping_process_serves_its_own_backlog_first",
    ),
    (
        22,
        "src/event_loop/acceptor.rs",
        "(self.draining, self.any_ready) = (true, true);",
        "self.listeners.clear();",
        "pending_connections_are_served_at_shutdown",
    ),
    (
        23,
        "src/listen/listener.rs",
        "rustix::io::ioctl_fionbio(&socket, true)?;",
        "",
        "inherited_listener_is_nonblocking_and_keeps_its_file",
    ),
    (
        24,
        "src/listen/socket.rs",
        "set_tcp_options(&socket, options.socket_buffer)?;
    socket.listen(options.backlog())?;",
        "set_tcp_options(&socket, options.socket_buffer)?;
    socket.listen(128)?;",
        "backlog_option_is_passed_to_listen",
    ),
    (
        24,
        "src/main.rs",
        "somaxconn().filter(|&max| max < options.backlog)",
        "somaxconn().filter(|&max| max == 0)",
        "backlog_capped_by_the_kernel_causes_a_warning",
    ),
    (
        25,
        "src/listen/socket.rs",
        "socket.set_only_v6(family == Family::Own)?;",
        "socket.set_only_v6(false)?;",
        "ipv4_and_ipv6_wildcards_share_a_port",
    ),
    (
        25,
        "src/listen/socket.rs",
        "socket.set_only_v6(family == Family::Own)?;",
        "socket.set_only_v6(true)?;",
        "bare_port_is_one_dual_stack_socket",
    ),
    (
        25,
        "src/event_loop/transport.rs",
        "Peer::Ip(address.ip().to_canonical(), address.port())",
        "Peer::Ip(address.ip(), address.port())",
        "ipv4_peer_of_dual_stack_socket_is_shown_as_ipv4",
    ),
    (
        26,
        "src/event_loop/connection/closing.rs",
        "State::Discarding { remaining: self.stream.bytes_available().unwrap_or(0) }",
        "State::Discarding { remaining: 0 }",
        "long_message_is_truncated_and_closed_with_fin",
    ),
    (
        26,
        "src/event_loop/connection/closing.rs",
        "self.discard(count, scratch, observer);
                            continue;",
        "return Ok(Some(Outcome::Closed(CloseReason::Drained)));",
        "data_after_our_fin_is_discarded",
    ),
    (
        27,
        "src/event_loop/server.rs",
        "self.connections.mark_ready(id, readable, writable);",
        "if event.is_read_closed() && self.connections.get_mut(id).is_some() { drop(self.connections.remove(id)); return; }
         self.connections.mark_ready(id, readable, writable);",
        "data_before_peer_fin_is_echoed_before_ours",
    ),
    (
        28,
        "src/event_loop/server.rs",
        "self.deadlines.arm(id.slot, now);",
        "",
        "silent_connection_is_closed",
    ),
    (
        28,
        "src/event_loop/connection/closing.rs",
        "scratch.traffic.discarded += count as u64;
        self.last_active = scratch.ms;",
        "scratch.traffic.discarded += count as u64;",
        "sending_peer_outlasts_idle_timeout_during_drain",
    ),
    (
        29,
        "src/event_loop/connection/closing.rs",
        "State::Draining { remaining } => *remaining = remaining.saturating_sub(count as u32),",
        "State::Draining { .. } => {}",
        "endless_sender_cannot_delay_its_fin",
    ),
    (
        30,
        "src/daemon/limits.rs",
        "requested.map_or(DEFAULT_MAX_CONNECTIONS, |requested| requested as u64)",
        "requested.map_or(limit, |requested| requested as u64)",
        "huge_descriptor_limit_is_capped_at_the_default",
    ),
    (
        30,
        "src/daemon/limits.rs",
        "let others = open_descriptors(limit) + RESERVED_DESCRIPTORS",
        "let others = 8 + RESERVED_DESCRIPTORS",
        "inherited_descriptors_lower_the_connection_limit",
    ),
    (
        30,
        "src/daemon/limits.rs",
        "(allowed > 0).then(|| requested.min(allowed) as usize)",
        "Some(requested.min(allowed.max(1)) as usize)",
        "too_few_descriptors_exit_1_with_the_number_needed",
    ),
    (
        31,
        "src/event_loop/connection.rs",
        "self.is_stalled() || self.readable == Readable::No",
        "self.readable == Readable::No",
        "nonreading_peer_is_not_read_from",
    ),
    (
        33,
        "src/daemon/output.rs",
        "OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY",
        "OFlags::WRONLY | OFlags::NOCTTY",
        "stalled_stderr_reader_does_not_affect_the_daemon",
    ),
    (
        37,
        "src/listen/unix_file.rs",
        "Some(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),",
        "Some(Errno::CONNREFUSED | Errno::NOENT | Errno::AGAIN) => Ok(None),",
        "live_socket_with_full_backlog_is_not_stale",
    ),
    (
        37,
        "src/listen/unix_file.rs",
        "(now.dev(), now.ino()) == identity;",
        "(now.dev(), now.ino()) == identity || now.dev() > 0;",
        "socket_file_of_another_daemon_is_not_removed",
    ),
    (
        38,
        "src/event_loop/clock.rs",
        "duration.as_micros().div_ceil(1000)",
        "(duration.as_micros() / 1000)",
        "short_timeout_is_rounded_up",
    ),
    (
        39,
        "benches/echo/generator/clients.rs",
        "while let Some(due) = schedule.due_until(now.min(closes)) {
                self.send(schedule.client(self.clients.len()), 1, due)?;",
        "while self.outstanding < self.clients.len() && let Some(_) = schedule.due_until(now.min(closes)) {
                self.send(schedule.client(self.clients.len()), 1, now)?;",
        "open_loop_counts_all_messages_due_in_stall",
    ),
    (
        41,
        "benches/echo/generator/clients.rs",
        "verify(&self.pattern, client, this.received, this.sent, &self.buffer[..count])?;",
        "",
        "wrong_bit_fails_with_its_position",
    ),
    (
        42,
        "benches/echo/generator/clients.rs",
        "return Err(format!(\"connection {client}: closed after {received} of {sent} bytes\").into());",
        "let _ = (received, sent);
                    break;",
        "early_close_fails",
    ),
    (
        43,
        "src/listen/stream_options.rs",
        "if_supported(socket.set_tcp_nodelay(true))?;",
        "",
        "tcp_nodelay_and_so_oobinline_are_on",
    ),
    (
        46,
        "src/event_loop/connection/closing.rs",
        "if self.stream.send_queue() == SendQueue::Empty {",
        "if self.stream.send_queue() != SendQueue::Gone {",
        "unacknowledged_tail_keeps_the_connection_open",
    ),
    (
        47,
        "src/listen/stream_options.rs",
        "if_supported(socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES))?;",
        "let _ = MAX_UNSENT_BYTES;",
        "stalled_peer_leaves_little_in_the_send_queue",
    ),
    (
        48,
        "src/event_loop/memory.rs",
        "self.max_bytes.saturating_sub(self.in_use).max(MIN_READ).min(self.block_size)",
        "self.block_size",
        "reads_shrink_near_the_bound_and_keep_it",
    ),
    (
        49,
        "src/event_loop/connection.rs",
        "0 => self.echo_in_place(scratch, observer)?, // Out of memory.",
        "0 => self.read(scratch, scratch.buffer.len(), observer)?,",
        "unkept_bytes_stay_in_the_kernel",
    ),
    (
        49,
        "src/event_loop/memory.rs",
        "if self.reserve.is_none() && !self.refill_reserve() {",
        "if self.reserve.is_none() && self.max_bytes == 0 {",
        "reserve_keeps_the_bytes_and_is_needed_to_read",
    ),
    (
        50,
        "src/event_loop/connections.rs",
        "            && connection.record_readiness(readable, writable)
            && !mem::replace(&mut connection.queued, true)
        {
            if connection.is_heavy { self.heavy.push_back(id) } else { self.light.push(id) }",
        "            && connection.record_readiness(readable, writable)
            && !mem::replace(&mut connection.queued, true)
        {
            self.light.push(id)",
        "heavy_connections_have_a_queue_of_their_own",
    ),
    (
        50,
        "src/event_loop/connections.rs",
        "if scratch.traffic.read() >= until {",
        "if scratch.traffic.read() >= until && bytes == 0 {",
        "light_connection_waits_for_bounded_heavy_work",
    ),
    (
        50,
        "src/event_loop/connection.rs",
        "pub const LIGHT: Quantum = Quantum { reads: MAX_READS_PER_SERVE, bytes: HEAVY_READ };",
        "pub const LIGHT: Quantum = Quantum { reads: MAX_READS_PER_SERVE, bytes: 512 * 1024 };",
        "light_connection_waits_for_bounded_heavy_work",
    ),
    (
        50,
        "src/event_loop/connections.rs",
        "        if let Some(connection) = self.get_mut(id) {
            connection.is_heavy = false;
        }",
        "",
        "idle_stalled_connection_is_closed",
    ),
    (
        50,
        "src/event_loop/server.rs",
        "if connection.queued {",
        "if connection.queued && now == 0 {",
        "connection_that_waits_for_its_turn_is_not_idle",
    ),
    (
        51,
        "src/daemon/output.rs",
        "Err(_) => return Ok(NonBlockingWriter(Route::Thread(WriterThread::start(duplicate()?)?))),",
        "Err(_) => (duplicate()?, WriteMode::File),",
        "unread_terminal_of_another_user_does_not_block_the_daemon",
    ),
    (
        51,
        "src/daemon/writer_thread.rs",
        "self.lines.try_send(Line { bytes, result: None }).map_err(to_io_error)",
        "self.lines.send(Line { bytes, result: None }).map_err(io::Error::other)",
        "stopped_terminal_drops_lines",
    ),
    (
        52,
        "src/daemon/signals.rs",
        "[Signal::SIGXFSZ, Signal::SIGTTOU]",
        "[Signal::SIGTTOU]",
        "file_size_limit_on_stderr_is_tolerated",
    ),
    (
        52,
        "src/daemon/signals.rs",
        "[Signal::SIGXFSZ, Signal::SIGTTOU]",
        "[Signal::SIGXFSZ]",
        "background_daemon_survives_stty_tostop",
    ),
    (
        53,
        "src/daemon/signals.rs",
        "    unblock();
    Ok(signals)",
        "    Ok(signals)",
        "signals_blocked_by_the_parent_still_work",
    ),
    (
        53,
        "src/main.rs",
        "if let Address::Host { .. } = address {",
        "if let (Address::Host { .. }, true) = (address, options.explain) {",
        "signal_during_name_resolution_exits_at_once",
    ),
    (
        54,
        "src/listen/stream_options.rs",
        "if_supported(socket.set_linger(None))?;",
        "",
        "options_of_a_passed_listener_do_not_reach_connections",
    ),
    (
        54,
        "src/listen/stream_options.rs",
        "if_supported(socket.set_tcp_cork(false))?;",
        "{}",
        "options_of_a_passed_listener_do_not_reach_connections",
    ),
    (
        54,
        "src/listen/listener.rs",
        "Kind::Mptcp => SetOptions::Always,",
        "Kind::Mptcp => SetOptions::UntilEmpty,",
        "passed_mptcp_listener_is_served",
    ),
    (
        55,
        "src/listen/stream_options.rs",
        "let _ = setsockopt(socket, PassRights, &false);",
        "let _ = setsockopt(socket, PassRights, &true);",
        "passing_a_descriptor_fails",
    ),
    (
        55,
        "src/listen/listener.rs",
        "Ok(Accepted::Unix(stream)) => refuse_descriptors(stream),",
        "Ok(Accepted::Unix(_)) => {}",
        "passing_a_descriptor_fails",
    ),
    (
        56,
        "src/event_loop/log_limit.rs",
        "if now < self.next_at {",
        "if now + LOG_INTERVAL_MS < self.next_at {",
        "flapping_condition_is_logged_once_per_interval",
    ),
    (
        57,
        "src/event_loop/server.rs",
        "connection.stream.reset_on_close(); // A FIN would make a partial echo look complete.",
        "let _ = &mut connection; // A FIN would make a partial echo look complete.",
        "stalled_connection_closed_as_idle_is_reset",
    ),
    (
        58,
        "src/event_loop/tcp_info.rs",
        "(self.send_queue() == SendQueue::Unacknowledged).then_some(idle)",
        "(self.send_queue() == SendQueue::Gone).then_some(idle)",
        "unread_tail_is_incomplete_and_ages",
    ),
    (
        59,
        "src/metrics/endpoint.rs",
        "self.listener.ready && self.resume_at == NEVER\n",
        "self.listener.ready && self.resume_at == NEVER && !self.slots.is_full()\n",
        "oldest_silent_client_makes_way_for_a_request",
    ),
    (
        61,
        "src/listen/stream_options.rs",
        "if_supported(setsockopt(socket, ReceiveLowWaterMark, &1).map_err(io::Error::from))?;",
        "let _ = ReceiveLowWaterMark;",
        "options_of_a_passed_listener_do_not_reach_connections",
    ),
];

/// Traps without a handling that could be removed, and why.
const NOT_REMOVABLE: [(u32, &str); 7] = [
    (9, "fewer events per wait cost time; epoll returns the rest in rotation, so no connection is starved"),
    (32, "the client decides"),
    (40, "each echo is timed, so a mean is not printed"),
    (44, "the tests run what the benchmark measures"),
    (45, "it is documented, not handled"),
    (60, "zero-copy sends are not used"),
    (62, "splice(2) is not used"),
];

fn experiments() -> Vec<Experiment> {
    let experiment = |&(_, file, original, replacement, test): &(u32, &str, &str, &str, &str)| Experiment {
        file: file.into(),
        original: original.into(),
        replacement: replacement.into(),
        test: test.into(),
    };
    HANDLINGS.iter().map(experiment).collect()
}

#[test]
fn of_each_trap_a_handling_can_be_removed() {
    let has_handling = |trap| HANDLINGS.iter().any(|handling| handling.0 == trap);
    for (trap, _) in traps() {
        let has_reason = NOT_REMOVABLE.iter().any(|reason| reason.0 == trap);
        assert!(has_handling(trap) != has_reason, "T{trap} needs an entry in HANDLINGS, or a reason in NOT_REMOVABLE");
    }
    experiments().iter().for_each(Experiment::assert_applicable);
}

#[test]
#[ignore = "builds the crate once per handling: a quarter of an hour"]
fn removing_a_handling_makes_its_test_fail() {
    experiments::assert_all_fail(experiments());
}
