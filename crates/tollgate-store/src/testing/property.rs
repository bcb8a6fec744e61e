//! Properties: conditions that hold for every generated input.

use std::{cell::Cell, fmt};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngSeed, TestCaseResult, TestRunner},
};

/// Shrinking a failure plays the whole input again each time.
const MOST_SHRINKS: u32 = 400;

/// Checks `property` on `cases` inputs, each with a unique number. A failure names its seed, for `PROPTEST_RNG_SEED` in
/// the environment. `TOLLGATE_TEST_PERCENT=1000` there plays ten times as many inputs.
///
/// # Panics
/// On the smallest input for which the property does not hold.
pub fn check_property<S>(cases: u32, inputs: &S, property: impl Fn(u32, S::Value) -> TestCaseResult)
where
    S: Strategy,
    S::Value: fmt::Debug,
{
    let environment = Config::default();
    let seed = match environment.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => rand::random(),
    };
    let percent = std::env::var("TOLLGATE_TEST_PERCENT").map_or(100, |percent| percent.parse().expect("a number"));
    let config = Config {
        cases: cases.saturating_mul(percent).div_ceil(100),
        rng_seed: RngSeed::Fixed(seed),
        // A file of failures would have to be written into the source.
        failure_persistence: None,
        max_shrink_iters: MOST_SHRINKS,
        ..environment
    };
    let case = Cell::new(0);
    let outcome = TestRunner::new(config).run(inputs, |input| {
        case.set(case.get() + 1);
        property(case.get(), input)
    });
    if let Err(failure) = outcome {
        panic!("{failure}\nPROPTEST_RNG_SEED={seed} in the environment plays the same inputs again");
    }
}
