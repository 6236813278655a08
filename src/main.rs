//! The daemon: options, log, bind, run, exit status.
#![forbid(unsafe_code)]

fn main() {}
