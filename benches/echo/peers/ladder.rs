//! The rungs of `examples/ladder`, unchanged: 4 KiB buffers, and no TCP_NODELAY. Messages of more than 4 KiB therefore wait
//! for delayed ACKs, some 40 ms on Linux.

use std::error::Error;

#[path = "../../../examples/ladder/1_blocking.rs"]
mod blocking;
#[path = "../../../examples/ladder/4_drain_the_edge.rs"]
mod drain_the_edge;
#[path = "../../../examples/ladder/3_readiness.rs"]
mod readiness;
#[path = "../../../examples/ladder/6_ready_queue.rs"]
mod ready_queue;
#[path = "../../../examples/ladder/5_state_machine.rs"]
mod state_machine;
#[path = "../../../examples/ladder/2_threads.rs"]
mod threads;

/// The name that chooses all rungs.
pub const GROUP: &str = "ladder";

/// The names of the rungs, with a description.
pub const RUNGS: [(&str, &str); 6] = [
    ("rung-1", "examples/ladder/1_blocking.rs: blocking calls, one client at a time"),
    ("rung-2", "examples/ladder/2_threads.rs: blocking calls, a thread per connection"),
    ("rung-3", "examples/ladder/3_readiness.rs: mio, with one read per event"),
    ("rung-4", "examples/ladder/4_drain_the_edge.rs: until WouldBlock, keeps pending output"),
    ("rung-5", "examples/ladder/5_state_machine.rs: remembers its state and what is readable"),
    ("rung-6", "examples/ladder/6_ready_queue.rs: records events, then serves within a budget"),
];

/// Runs a rung's `main`, which listens on the address in this process's first argument. Returns only on an error.
pub fn serve(name: &str) -> Result<(), Box<dyn Error>> {
    match name {
        "rung-1" => Ok(blocking::main()?),
        "rung-2" => Ok(threads::main()?),
        "rung-3" => readiness::main(),
        "rung-4" => drain_the_edge::main(),
        "rung-5" => state_machine::main(),
        "rung-6" => ready_queue::main(),
        _ => Err("no such peer".into()),
    }
}
