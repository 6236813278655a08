//! The pictures, as handwritten SVG: a few shapes, and a style sheet for light and dark.
//!
//! Each picture has a background of its own, because the page around an `<img>` may be dark while the system is light.
//!
//! - `latency`, `cost`, `throughput`, `memory`: one picture each
//! - `page`: the shapes; `axis`: scales and ticks; `style`: the style sheet

mod axis;
mod cost;
mod latency;
mod memory;
mod page;
mod style;
mod throughput;

use crate::report::Machine;
use crate::results::Outcome;

/// Returns how many rounds of several scenarios were disturbed, how many there were, and the largest disturbance.
fn sum_of_disturbed(outcomes: &[&Outcome]) -> (usize, usize, f64) {
    let each = outcomes.iter().map(|outcome| outcome.disturbed());
    each.fold((0, 0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1, sum.2.max(next.2)))
}

/// Returns names and contents of the pictures for which there are results.
pub fn all(outcomes: &[Outcome], machine: &Machine) -> Vec<(&'static str, String)> {
    let pictures = [
        ("latency.svg", latency::draw(outcomes, machine)),
        ("cost.svg", cost::draw(outcomes, machine)),
        ("throughput.svg", throughput::draw(outcomes, machine)),
        ("memory.svg", memory::draw(outcomes, machine)),
    ];
    pictures.into_iter().filter_map(|(name, picture)| Some((name, picture?))).collect()
}
