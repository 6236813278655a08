//! Property tests: checks properties on inputs that proptest generates, and shrinks an input that
//! fails to the smallest one that still does.
#![allow(clippy::print_stdout, reason = "the test report includes the failing input")]

use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestError, TestRunner, contextualize_config};

/// Generates `cases` inputs, and returns the smallest one for which `check` panics, or `None` if it
/// never does.
///
/// The panic message is discarded: the caller prints the input and runs the check on it once more.
///
/// Every run generates the same inputs, so a failure is reproducible without a file of past failures.
/// Set `PROPTEST_RNG_SEED=2` to generate others.
pub fn smallest_failure<S: Strategy>(cases: u32, inputs: &S, check: impl Fn(S::Value)) -> Option<S::Value> {
    let rng_seed = RngSeed::Fixed(1);
    let rng_algorithm = RngAlgorithm::XorShift; // Six times as fast as the default in an unoptimized build.
    let config = Config { cases, rng_seed, rng_algorithm, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(contextualize_config(config)).run(inputs, |input| {
        check(input);
        Ok(())
    });
    match run {
        Ok(()) => None,
        Err(TestError::Fail(_, smallest)) => Some(smallest),
        Err(TestError::Abort(reason)) => panic!("proptest gave up: {reason}"),
    }
}

/// Runs `check` on `cases` generated inputs. On failure, prints the smallest failing input and panics
/// with the message of the check.
#[allow(dead_code, reason = "the simulation prints its failing scripts itself")]
pub fn for_each<S: Strategy<Value: Debug>>(cases: u32, inputs: &S, check: impl Fn(&S::Value)) {
    if let Some(smallest) = smallest_failure(cases, inputs, |input| check(&input)) {
        println!("smallest failing input: {smallest:?}");
        check(&smallest);
        panic!("the check failed on this input, but passed when repeated: {smallest:?}");
    }
}
