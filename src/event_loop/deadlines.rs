//! Idle timers: a lazy min-heap with at most one entry per slot.
//!
//! The idle deadline of a connection moves with every byte, and moving a heap entry for every byte would be wasted work. So
//! activity only stamps the connection, and an entry says when a slot is to be checked, not when its connection is to be
//! closed. When it expires, the server compares the stamp. If there has been activity in the meantime, the timer is re-armed
//! for the actual deadline. That is exact, unlike a queue that is swept in rounds, which closes after up to twice the timeout.
//!
//! The entry belongs to the slot, not to the connection. A reused slot keeps the entry of its previous connection; it fires
//! early, which only costs one extra check. So churn leaves no garbage behind: an entry per connection would keep ten minutes
//! of closed ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::event_loop::clock::NEVER;

/// The idle timers by slot, in milliseconds since the loop started.
#[derive(Debug, Default)]
pub struct Deadlines {
    /// The idle timeout in milliseconds. `None`: no timer ever expires.
    timeout: Option<u64>,
    /// Earliest first, 16 bytes per entry.
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    /// By slot: whether the heap has an entry for it.
    armed: Vec<bool>,
}

impl Deadlines {
    /// Creates timers for this idle timeout in milliseconds, with address space for `slots` of them.
    pub fn new(timeout: Option<u64>, slots: usize) -> Deadlines {
        let mut deadlines = Deadlines { timeout, ..Deadlines::default() };
        if timeout.is_some() {
            // If the system does not allow it, they are allocated when connections arrive.
            let _ = deadlines.heap.try_reserve_exact(slots);
            let _ = deadlines.armed.try_reserve_exact(slots);
        }
        deadlines
    }

    /// Arms the timer of `slot`, whose connection is active `now`. Does nothing if it is armed already: that entry is not
    /// later, because all deadlines lie the same timeout after the time at which they were armed.
    pub fn arm(&mut self, slot: u32, now: u64) {
        if let Some(timeout) = self.timeout {
            self.arm_at(slot, now + timeout + 1);
        }
    }

    /// Returns whether `idle` milliseconds without activity exceed the timeout. If not, the timer of `slot` is re-armed for
    /// the moment at which they would.
    pub fn expired_or_rearm(&mut self, slot: u32, now: u64, idle: u32) -> bool {
        let is_expired = self.is_expired(idle);
        if let (false, Some(timeout)) = (is_expired, self.timeout) {
            self.arm_at(slot, now + timeout + 1 - u64::from(idle));
        }
        is_expired
    }

    /// Returns whether `idle` milliseconds without activity exceed the timeout. Reaching it is not enough: both timestamps are
    /// truncated to milliseconds, so their difference may be one too large.
    pub fn is_expired(&self, idle: u32) -> bool {
        self.timeout.is_some_and(|timeout| u64::from(idle) > timeout)
    }

    /// Arms the timer of `slot` for this time. Does nothing if it is armed already.
    pub fn arm_at(&mut self, slot: u32, deadline: u64) {
        let index = slot as usize;
        if index >= self.armed.len() {
            self.armed.resize(index + 1, false);
        }
        if !self.armed[index] {
            self.armed[index] = true;
            self.heap.push(Reverse((deadline, slot)));
        }
    }

    /// Returns the earliest deadline, or [`NEVER`].
    pub fn next(&self) -> u64 {
        self.heap.peek().map_or(NEVER, |&Reverse((deadline, _))| deadline)
    }

    /// Removes a slot whose timer has expired and returns it. The slot is disarmed; call `arm` again to be notified.
    #[inline]
    pub fn pop_expired(&mut self, now: u64) -> Option<u32> {
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
    fn slots_expire_in_order_and_not_early() {
        let mut deadlines = Deadlines::default();
        for (slot, deadline) in [(4, 30), (0, 10), (2, 20)] {
            deadlines.arm_at(slot, deadline);
        }
        assert_eq!(deadlines.next(), 10);
        assert_eq!(deadlines.pop_expired(9), None);
        assert_eq!(deadlines.pop_expired(10), Some(0));
        assert_eq!(deadlines.pop_expired(10), None);
        assert_eq!(deadlines.pop_expired(40), Some(2));
        assert_eq!(deadlines.pop_expired(40), Some(4));
        assert_eq!(deadlines.pop_expired(40), None);
        assert_eq!(deadlines.next(), NEVER);
    }

    #[test]
    fn slot_has_one_entry_however_often_it_is_armed() {
        let mut deadlines = Deadlines::default();
        for offset in 0..1000 {
            deadlines.arm_at(7, 100 + offset);
        }
        assert_eq!(deadlines.heap.len(), 1);
        assert_eq!(deadlines.next(), 100, "the earliest entry stays: early is harmless, late is not");
    }

    #[test]
    fn expired_slot_can_be_armed_again() {
        let mut deadlines = Deadlines::default();
        deadlines.arm_at(1, 5);
        assert_eq!(deadlines.pop_expired(5), Some(1));
        deadlines.arm_at(1, 8);
        assert_eq!(deadlines.pop_expired(7), None);
        assert_eq!(deadlines.pop_expired(8), Some(1));
    }

    #[test]
    fn connection_expires_only_after_full_timeout() {
        let mut deadlines = Deadlines::new(Some(500), 1);
        deadlines.arm(3, 1000);
        assert_eq!(deadlines.next(), 1501, "a millisecond that has begun is not over");
        assert_eq!(deadlines.pop_expired(1501), Some(3));
        assert!(deadlines.expired_or_rearm(3, 1501, 501));
        assert_eq!(deadlines.next(), NEVER);
        assert!(!deadlines.expired_or_rearm(3, 1501, 500));
        assert_eq!(deadlines.next(), 1502);
        assert_eq!(deadlines.pop_expired(1502), Some(3));
        assert!(!deadlines.expired_or_rearm(3, 1502, 2), "there was activity in the meantime");
        assert_eq!(deadlines.next(), 1502 + 499);
    }

    #[test]
    fn without_timeout_nothing_expires() {
        let mut deadlines = Deadlines::new(None, 1);
        deadlines.arm(3, 1000);
        assert!(!deadlines.expired_or_rearm(3, 1_000_000, 999_000));
        assert_eq!(deadlines.next(), NEVER);
    }
}
