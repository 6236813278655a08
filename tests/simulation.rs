//! The state machine over a simulated kernel and random schedules, a hundred thousand per run.
//!
//! The kernel (`simulation/kernel.rs`) has a receive queue, a send queue whose bytes are acknowledged later, FIN, RST, urgent
//! marks, and edges: an event is reported once, and its flags are those of the moment in which it is fetched. A schedule is a
//! sequence of steps drawn from a seed: the peer sends, reads, acknowledges, closes or resets; events are fetched late, are
//! spurious or stale; calls fall short, are interrupted or fail for lack of memory; memory for output runs out; the server shuts
//! down. After every step the invariants are checked (`simulation/world.rs`). At the end the peer behaves, and everything must
//! have been echoed.
//!
//! `simulation/rounds.rs` does the same with several connections, served in rounds as the server serves them.
//!
//! The same steps are drawn a second time, by proptest, as a script. There are fewer of them, because drawing takes longer, but a
//! script that fails is reduced to the shortest that still does.
//!
//!     ECHOD_SCHEDULES=10000000 cargo test --release --test simulation    # more schedules
//!     ECHOD_SEED=4711 cargo test --test simulation                       # one schedule, printed step by step
//!     ECHOD_SCRIPTS=1000000 cargo test --release --test simulation       # more scripts

#![allow(clippy::print_stdout, reason = "a schedule is printed step by step on request")]

#[path = "simulation/kernel.rs"]
mod kernel;
#[path = "support/property.rs"]
mod property;
#[path = "simulation/rounds.rs"]
mod rounds;
#[path = "simulation/world.rs"]
mod world;

use std::cell::Cell;
use std::collections::HashSet;

use echod::event_loop::outcome::CloseReason;
use echod::event_loop::state::{State, TRANSITIONS};
use fastrand::Rng;
use kernel::FakeKernel;
use proptest::collection::vec;
use proptest::prelude::*;
use world::{BUFFER_SIZE, READABLE, Start, Step, World, transient_error};

/// Runs the schedule that this seed draws. Returns how it ended and which transitions occurred. Panics if an invariant does not
/// hold.
fn run_seed(seed: u64, verbose: bool) -> (CloseReason, HashSet<(&'static str, &'static str)>) {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(Start::draw(&mut rng), verbose);
    for _ in 0..rng.usize(5..80) {
        if world.closed.is_some() {
            break;
        }
        world.scratch.ms += rng.u32(..3);
        world.step(Step::draw(&mut rng));
    }
    (world.settle(), world.transitions)
}

/// Runs these steps, and returns how they ended. Panics as above.
fn run_script(start: Start, script: &[Step], verbose: bool) -> CloseReason {
    let mut world = World::new(start, verbose);
    for step in script {
        if world.closed.is_some() {
            break;
        }
        world.step(*step);
    }
    world.settle()
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// The reasons for which a connection ends by itself.
const ENDS: [CloseReason; 4] = [CloseReason::Finished, CloseReason::OneShot, CloseReason::Drained, CloseReason::Reset];

#[test]
fn random_schedules_lose_no_byte_and_no_wakeup() {
    if let Some(seed) = variable("ECHOD_SEED") {
        println!("schedule {seed}: {:?}", run_seed(seed, true).0);
        return;
    }
    let schedules = variable("ECHOD_SCHEDULES").unwrap_or(100_000);
    let mut ends = [0u64; CloseReason::COUNT];
    let mut transitions = HashSet::new();
    for seed in 0..schedules {
        match std::panic::catch_unwind(|| run_seed(seed, false)) {
            Ok((reason, of_seed)) => {
                ends[reason.index()] += 1;
                transitions.extend(of_seed);
            }
            Err(_) => panic!("schedule {seed} fails; to print it: ECHOD_SEED={seed} cargo test --test simulation"),
        }
    }
    println!("{schedules} schedules: {:?}", CloseReason::NAMES.iter().zip(ends).collect::<Vec<_>>());
    for reason in ENDS {
        assert!(
            ends[reason.index()] > schedules / 1000,
            "{reason} hardly occurs, so the schedules prove nothing about it"
        );
    }
    // The assertion in `Connection::enter` ensures that no other transition occurs.
    for (from, event, to) in TRANSITIONS {
        assert!(transitions.contains(&(from, to)), "no schedule goes from {from} to {to} ({event})");
    }
}

/// Draws what `Start::draw` draws, without chance.
fn starts() -> impl Strategy<Value = Start> {
    let drawn = (any::<bool>(), prop::bool::weighted(0.125), 0..40_usize);
    drawn.prop_map(|(tcp, one_shot, room)| Start { tcp, one_shot, room, chance: None })
}

/// Draws what `Step::draw` draws, about as often, and the failures of single calls. Numbers shrink toward 0, so steps shrink toward
/// those that come first. (Not with `prop_oneof!`, which takes five times as long in an unoptimized build.)
fn steps() -> impl Strategy<Value = Step> {
    (0..630_usize, 1..60_usize, 0..12_usize).prop_map(|(step, count, other)| match step {
        0..95 => Step::Serve,
        95..195 => Step::Fetch,
        195..295 => Step::Pass(1 + other as u32 / 4),
        295..355 => Step::PeerReads(count),
        355..455 => Step::PeerSends { count, marked: other == 11 },
        455..467 => Step::PeerSendsFin,
        467 => Step::PeerResets,
        468..476 => Step::Retry,
        476..496 => Step::StaleEvent(READABLE[other % 3], other >= 6),
        496..500 => Step::Drain { overstated: u32::from(other >= 9) },
        500..560 => Step::CallFallsShort { after: other, most: count },
        560..600 => Step::CallFails { after: other, errno: transient_error(step) },
        600..625 => Step::PeerAcknowledges(count),
        _ => Step::LimitReads(if other < 6 { 0 } else { count % BUFFER_SIZE + 1 }),
    })
}

#[test]
fn generated_scripts_lose_no_byte_and_no_wakeup() {
    let scripts =
        variable("ECHOD_SCRIPTS").unwrap_or(20_000).try_into().expect("ECHOD_SCRIPTS should fit into 32 bits");
    let ends: [Cell<u32>; CloseReason::COUNT] = Default::default();
    let shortest = property::smallest_failure(scripts, &(starts(), vec(steps(), 0..100)), |(start, script)| {
        let end = &ends[run_script(start, &script, false).index()];
        end.update(|count| count + 1);
    });
    if let Some((start, script)) = shortest {
        println!("the shortest script that fails: {start:?}");
        for step in &script {
            println!("    {step:?}");
        }
        println!("what happens in it:");
        let end = run_script(start, &script, true);
        panic!("the script failed before, and now it ends with {end:?}");
    }
    println!("{scripts} scripts: {:?}", CloseReason::NAMES.iter().zip(ends.iter().map(Cell::get)).collect::<Vec<_>>());
    for reason in ENDS {
        let ended = ends[reason.index()].get();
        assert!(ended > scripts / 1000, "{reason} hardly occurs, so the scripts prove nothing about it");
    }
}

/// Returns how often read(2) is called to echo five bytes over a connection like this.
fn reads_for_five_bytes(tcp: bool, before_event: impl Fn(&mut FakeKernel)) -> usize {
    let mut world = World::new(Start { tcp, one_shot: false, room: 1000, chance: None }, false);
    world.kernel.borrow_mut().peer_sends(5, false);
    before_event(&mut world.kernel.borrow_mut());
    world.fetch();
    world.serve();
    assert_eq!(world.tally.received, 5);
    world.kernel.borrow().reads
}

#[test]
fn short_read_on_tcp_saves_the_blocking_read() {
    assert_eq!(reads_for_five_bytes(true, |_| {}), 1);
    assert_eq!(reads_for_five_bytes(true, |kernel| kernel.peer_sends_fin()), 2, "a FIN is behind the bytes");
    assert_eq!(reads_for_five_bytes(false, |_| {}), 2, "a short read on a Unix socket proves nothing");
}

/// Returns a world in which the peer has sent bytes, received their echo and acknowledged it, and then sent its FIN.
fn finished_peer(acknowledged: usize) -> World {
    let mut world = World::new(Start { tcp: true, one_shot: false, room: 1000, chance: None }, false);
    world.kernel.borrow_mut().peer_sends(5, false);
    world.fetch();
    world.serve();
    world.kernel.borrow_mut().peer_acknowledges(acknowledged);
    world.kernel.borrow_mut().peer_sends_fin();
    world.fetch();
    world.serve();
    world
}

#[test]
fn acknowledged_echo_closes_without_further_call() {
    let world = finished_peer(5);
    assert_eq!(world.closed, Some(CloseReason::Finished));
    assert_eq!(world.kernel.borrow().reads, 1, "one question replaces the read that would return 0");
    assert!(!world.kernel.borrow().sent_fin, "close(2) sends our FIN");
}

#[test]
fn unacknowledged_tail_keeps_the_connection_open() {
    let mut world = finished_peer(4);
    assert_eq!((world.closed, world.connection.state()), (None, State::LastAck(CloseReason::Finished)));
    world.kernel.borrow_mut().peer_acknowledges(1);
    world.fetch();
    world.serve();
    assert_eq!(world.closed, Some(CloseReason::Finished));
}

#[test]
fn fin_behind_held_bytes_counts_as_finished() {
    let mut world = World::new(Start { tcp: true, one_shot: false, room: 1000, chance: None }, false);
    world.kernel.borrow_mut().peer_sends(5, false);
    world.kernel.borrow_mut().peer_sends_fin();
    world.step(Step::Drain { overstated: 0 });
    world.serve();
    world.kernel.borrow_mut().peer_acknowledges(100);
    world.fetch();
    world.serve();
    assert_eq!(world.closed, Some(CloseReason::Finished));
}

#[test]
fn unkept_bytes_stay_in_the_kernel() {
    let mut world = World::new(Start { tcp: true, one_shot: false, room: 3, chance: None }, false);
    world.kernel.borrow_mut().peer_sends(5, false);
    world.scratch.read_limit = 0;
    world.fetch();
    world.serve();
    assert!(!world.connection.is_stalled(), "nothing can be kept");
    assert_eq!((world.kernel.borrow().outbox.len(), world.kernel.borrow().inbox.len()), (3, 2));
    world.kernel.borrow_mut().peer_reads(10);
    world.step(Step::Retry);
    world.serve();
    assert_eq!((world.kernel.borrow().outbox.len(), world.kernel.borrow().inbox.len()), (5, 0));
}
