//! Steps of startup that may take long, such as name resolution, and which signals can interrupt.

use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::{io, thread};

use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::SIGUSR1;
use signal_hook_mio::v1_0::Signals;

const SIGNALS: Token = Token(0);
const STEP: Token = Token(1);

/// Runs `step` in a thread and returns its result, or `None` as soon as a signal to stop arrives. SIGUSR1 calls `on_usr1`.
///
/// getaddrinfo(3) waits for name servers for 10 s and more and cannot be canceled. A step that is interrupted is abandoned: its
/// thread ends with the process, and its result is dropped.
pub fn interruptible<T: Send + 'static>(
    signals: &mut Signals,
    on_usr1: impl Fn(),
    step: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let mut poll = Poll::new()?;
    poll.registry().register(signals, SIGNALS, Interest::READABLE)?;
    let waker = Arc::new(Waker::new(poll.registry(), STEP)?);
    let (sender, result) = mpsc::channel();
    let done = Arc::clone(&waker);
    thread::Builder::new().name("startup".into()).spawn(move || {
        let _ = sender.send(step()); // Fails only if the step has been abandoned.
        let _ = done.wake();
    })?;
    let mut events = Events::with_capacity(2);
    loop {
        for signal in signals.pending() {
            match signal {
                SIGUSR1 => on_usr1(),
                _ => return Ok(None),
            }
        }
        match result.try_recv() {
            Ok(value) => {
                poll.registry().deregister(signals)?;
                return Ok(Some(value));
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(io::Error::other("the thread has ended without a result")),
        }
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn result_of_the_step_is_returned() {
        let mut signals = Signals::new([SIGUSR1]).expect("signals");
        for round in 0..3 {
            let result = interruptible(&mut signals, || {}, move || round).expect("no error");
            assert_eq!(result, Some(round), "the signals can be registered again each time");
        }
    }

    #[test]
    fn usr1_does_not_interrupt_the_step() {
        let (release, wait) = mpsc::channel();
        let mut signals = Signals::new([SIGUSR1]).expect("signals");
        let printed = Cell::new(0);
        signal_hook::low_level::raise(SIGUSR1).expect("raise");
        let on_usr1 = || {
            printed.set(printed.get() + 1);
            release.send(()).expect("waiting step");
        };
        let result = interruptible(&mut signals, on_usr1, move || wait.recv().is_ok()).expect("no error");
        assert_eq!((result, printed.get()), (Some(true), 1));
    }
}
