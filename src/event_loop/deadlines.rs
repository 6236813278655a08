//! When to look at which slot again: a min-heap with at most one entry per slot.
//!
//! The idle deadline of a connection moves with every byte, and moving an entry in a heap for every
//! byte is work that nobody needs. So activity only stamps the connection, and the heap is lazy: an
//! entry says when a slot is to be looked at, not when its connection is to be closed. When it comes
//! due, the server compares the stamp; a connection that has lived meanwhile is armed again at its
//! true deadline. That is exact, unlike a queue swept in rounds, which closes after up to
//! twice the timeout.
//!
//! The entry belongs to the slot, not to the connection. A slot used again keeps the entry of its
//! former occupant, which is early, and early is harmless. So churn leaves no garbage behind: an
//! entry per connection would keep ten minutes of dead ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::event_loop::clock::NEVER;

/// Idle deadlines by slot, in milliseconds since the loop started.
#[derive(Debug, Default)]
pub struct Deadlines {
    /// The idle timeout in milliseconds, or None: then nothing is ever due.
    timeout: Option<u64>,
    /// Soonest first. 16 bytes an entry.
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    /// By slot: whether the heap has its entry.
    armed: Vec<bool>,
}

impl Deadlines {
    /// None yet, for this idle timeout in milliseconds.
    pub fn new(timeout: Option<u64>) -> Deadlines {
        Deadlines { timeout, ..Deadlines::default() }
    }

    /// Makes sure that `slot` is looked at when it could have been idle for too long, if it is active `now`. Does nothing
    /// where the slot is armed already: that entry is not later, as every deadline lies one and the same timeout after
    /// its arming.
    pub fn arm(&mut self, slot: u32, now: u64) {
        if let Some(timeout) = self.timeout {
            self.arm_by(slot, now + timeout + 1);
        }
    }

    /// Looks at a slot that has been idle for so many milliseconds. Returns whether that is too long; if not, the slot is
    /// armed for when it will be.
    pub fn look(&mut self, slot: u32, now: u64, idle: u32) -> bool {
        let Some(timeout) = self.timeout else { return false };
        // More than the timeout: both stamps are cut to whole milliseconds, so their difference may be one too much.
        let is_over = u64::from(idle) > timeout;
        if !is_over {
            self.arm_by(slot, now + timeout + 1 - u64::from(idle));
        }
        is_over
    }

    fn arm_by(&mut self, slot: u32, due: u64) {
        let index = slot as usize;
        if index >= self.armed.len() {
            self.armed.resize(index + 1, false);
        }
        if !self.armed[index] {
            self.armed[index] = true;
            self.heap.push(Reverse((due, slot)));
        }
    }

    /// The soonest deadline, or [`NEVER`].
    pub fn next(&self) -> u64 {
        self.heap.peek().map_or(NEVER, |&Reverse((due, _))| due)
    }

    /// Takes out a slot whose deadline has come. It is disarmed: whoever still wants to be woken arms again.
    #[inline]
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        if self.next() > now { None } else { self.pop() }
    }

    fn pop(&mut self) -> Option<u32> {
        let Reverse((_, slot)) = self.heap.pop()?;
        self.armed[slot as usize] = false;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_due_in_order_and_not_before_their_time() {
        let mut deadlines = Deadlines::default();
        for (slot, due) in [(4, 30), (0, 10), (2, 20)] {
            deadlines.arm_by(slot, due);
        }
        assert_eq!(deadlines.next(), 10);
        assert_eq!(deadlines.pop_due(9), None);
        assert_eq!(deadlines.pop_due(10), Some(0));
        assert_eq!(deadlines.pop_due(10), None);
        assert_eq!(deadlines.pop_due(40), Some(2));
        assert_eq!(deadlines.pop_due(40), Some(4));
        assert_eq!(deadlines.pop_due(40), None);
        assert_eq!(deadlines.next(), NEVER);
    }

    #[test]
    fn a_slot_has_one_entry_however_often_it_is_armed() {
        let mut deadlines = Deadlines::default();
        for due in 0..1000 {
            deadlines.arm_by(7, 100 + due);
        }
        assert_eq!(deadlines.heap.len(), 1);
        assert_eq!(deadlines.next(), 100, "the earliest entry stays: early is harmless, late is not");
    }

    #[test]
    fn a_slot_that_came_due_can_be_armed_again() {
        let mut deadlines = Deadlines::default();
        deadlines.arm_by(1, 5);
        assert_eq!(deadlines.pop_due(5), Some(1));
        deadlines.arm_by(1, 8);
        assert_eq!(deadlines.pop_due(7), None);
        assert_eq!(deadlines.pop_due(8), Some(1));
    }

    #[test]
    fn idle_is_who_was_so_for_longer_than_the_timeout_and_who_was_not_is_looked_at_then() {
        let mut deadlines = Deadlines::new(Some(500));
        deadlines.arm(3, 1000);
        assert_eq!(deadlines.next(), 1501, "a millisecond that has begun is not over");
        assert_eq!(deadlines.pop_due(1501), Some(3));
        assert!(deadlines.look(3, 1501, 501));
        assert_eq!(deadlines.next(), NEVER);
        assert!(!deadlines.look(3, 1501, 500));
        assert_eq!(deadlines.next(), 1502);
        assert_eq!(deadlines.pop_due(1502), Some(3));
        assert!(!deadlines.look(3, 1502, 2), "it has lived meanwhile");
        assert_eq!(deadlines.next(), 1502 + 499);
    }

    #[test]
    fn without_a_timeout_nothing_is_due() {
        let mut deadlines = Deadlines::new(None);
        deadlines.arm(3, 1000);
        assert!(!deadlines.look(3, 1_000_000, 999_000));
        assert_eq!(deadlines.next(), NEVER);
    }
}
