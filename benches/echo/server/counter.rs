//! System calls and user instructions of a server, counted from outside by perf(1) or strace(1).
//!
//! Counting slows the server down, so it happens in a separate pass whose times are not used.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::process::guarded;
use crate::generator::Result;

/// What was counted while a load ran.
#[derive(Clone, Copy)]
pub struct Count {
    /// System calls.
    pub calls: u64,
    /// Instructions in user space, where the processor counts them.
    pub instructions: Option<u64>,
    /// The part of all cycles that was spent in user space, where the processor counts them.
    pub user_part: Option<f64>,
}

/// The program that counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// perf(1): the raw_syscalls:sys_enter tracepoint and the processor's counter.
    Perf,
    /// strace(1): slow, which does not matter because nothing is timed in this pass.
    Strace,
}

impl Counter {
    /// Returns the best counter that works on this machine, tried on a sleeping process, or why there is none.
    pub fn find() -> std::result::Result<Counter, String> {
        let mut reasons = Vec::new();
        for (counter, name) in [(Counter::Perf, "perf"), (Counter::Strace, "strace")] {
            match counter.try_out() {
                Ok(()) => return Ok(counter),
                Err(error) => reasons.push(format!("{name}: {error}")),
            }
        }
        Err(reasons.join("; "))
    }

    fn try_out(self) -> Result<()> {
        let mut sleeper = guarded("sleep")?.arg("60").spawn()?;
        let counted = self.attach(&[sleeper.id()]).and_then(Attached::detach);
        sleeper.kill()?;
        sleeper.wait()?;
        counted.map(drop)
    }

    /// Starts to count. When it returns, everything that the processes do from now on is counted.
    pub fn attach(self, pids: &[u32]) -> Result<Attached> {
        let mut command = match self {
            Counter::Perf => {
                let mut perf = guarded("perf")?;
                perf.args(["stat", "-x", ";", "-e", "raw_syscalls:sys_enter,instructions:u,cycles:u,cycles:k"]);
                // It starts when it reads `enable` from its standard input, and confirms on its standard output.
                perf.args(["-D", "-1", "--control", "fd:0,1"]);
                perf
            }
            Counter::Strace => {
                let mut strace = guarded("strace")?;
                strace.args(["-f", "-c", "-U", "calls,name"]);
                strace
            }
        };
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        command.arg("-p").arg(pids.join(","));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
        let mut attached = Attached { counter: self, child: child.spawn()?, output: String::new() };
        match self {
            Counter::Perf => attached.command("enable\n")?,
            // "strace: Process 4711 attached", or why not.
            Counter::Strace => {
                let stderr = attached.child.stderr.as_mut().expect("a piped stream");
                let mut byte = [0];
                while !attached.output.ends_with("attached") {
                    if stderr.read(&mut byte)? == 0 || byte == *b"\n" {
                        return Err(std::mem::take(&mut attached.output).into());
                    }
                    attached.output.push(byte[0].into());
                }
            }
        }
        Ok(attached)
    }
}

/// A running counter.
pub struct Attached {
    counter: Counter,
    child: Child,
    output: String,
}

impl Attached {
    /// Stops counting.
    pub fn detach(mut self) -> Result<Count> {
        if self.counter == Counter::Perf {
            self.command("disable\n")?;
        }
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a child has a pid");
        kill_process(pid, Signal::INT)?;
        let mut report = String::new();
        self.child.stderr.as_mut().expect("a piped stream").read_to_string(&mut report)?;
        self.child.wait()?;
        let count = match self.counter {
            Counter::Perf => read_perf(&report),
            Counter::Strace => read_strace(&report),
        };
        count.ok_or_else(|| format!("cannot read its report: {report}").into())
    }

    /// Sends perf a command and waits for its `ack`.
    fn command(&mut self, command: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().expect("a piped stream");
        let written = stdin.write_all(command.as_bytes());
        let mut answer = String::new();
        BufReader::new(self.child.stdout.as_mut().expect("a piped stream")).read_line(&mut answer)?;
        if written.is_err() || !answer.contains("ack") {
            let mut reason = String::new();
            self.child.stderr.as_mut().expect("a piped stream").read_to_string(&mut reason)?;
            return Err(reason.lines().next().unwrap_or("it exited").to_owned().into());
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill(); // Usually it has exited already.
        let _ = self.child.wait();
    }
}

/// Lines of `count;unit;event;…`. A count may be `<not counted>` (the process slept) or `<not supported>`.
fn read_perf(report: &str) -> Option<Count> {
    let count = |event: &str| -> Option<u64> {
        match report.lines().find(|line| line.contains(event))?.split(';').next()? {
            "<not counted>" => Some(0),
            number => number.parse().ok(),
        }
    };
    let (user, kernel) = (count("cycles:u"), count("cycles:k"));
    let user_part = user.zip(kernel).map(|(user, kernel)| user as f64 / (user + kernel) as f64);
    Some(Count { calls: count("raw_syscalls")?, instructions: count("instructions:u"), user_part })
}

/// A table of calls and names with a total. Without a single call, strace prints only "Process 4711 detached".
fn read_strace(report: &str) -> Option<Count> {
    let calls = match report.lines().rev().find(|line| line.trim_end().ends_with("total")) {
        Some(total) => total.split_whitespace().next()?.parse().ok()?,
        None => report.contains("detached").then_some(0)?,
    };
    Some(Count { calls, instructions: None, user_part: None })
}
