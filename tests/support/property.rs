//! Properties, held against what proptest draws. A failure is cut down to the smallest input that still fails.
#![allow(clippy::print_stdout, reason = "the input that failed belongs into the report")]

use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestError, TestRunner, contextualize_config};

/// Draws so many inputs, and returns the smallest one for which `holds` panics, if there is any.
///
/// What it panics with is swallowed: the caller says what was drawn, and lets it happen once more.
///
/// Every run draws the same inputs, so a failure repeats, and no file has to remember it. `PROPTEST_RNG_SEED=2` draws
/// others.
pub fn smallest_failure<S: Strategy>(cases: u32, inputs: &S, holds: impl Fn(S::Value)) -> Option<S::Value> {
    let rng_seed = RngSeed::Fixed(1);
    let rng_algorithm = RngAlgorithm::XorShift; // Without optimisation, six times as fast as the default.
    let config = Config { cases, rng_seed, rng_algorithm, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(contextualize_config(config)).run(inputs, |input| {
        holds(input);
        Ok(())
    });
    match run {
        Ok(()) => None,
        Err(TestError::Fail(_, smallest)) => Some(smallest),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

/// Has each of so many inputs looked at. A panic is preceded by the smallest input that does it.
#[allow(dead_code, reason = "the simulation tells what happens in its scripts itself")]
pub fn for_each<S: Strategy<Value: Debug>>(cases: u32, inputs: &S, look: impl Fn(&S::Value)) {
    if let Some(smallest) = smallest_failure(cases, inputs, |input| look(&input)) {
        println!("the smallest that fails: {smallest:?}");
        look(&smallest);
        panic!("it failed, and now it does not");
    }
}
