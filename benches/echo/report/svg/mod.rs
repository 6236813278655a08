//! The pictures, as handwritten SVG: a few shapes, and a style sheet for light and dark.
//!
//! Each picture has a background of its own, because the page around an `<img>` may be dark while the system is light.
//!
//! - `latency`, `cost`, `throughput`, `memory`, `beside`, `ladder`: one picture each
//! - `page`: the shapes; `axis`: scales and ticks; `style`: the style sheet

mod axis;
mod beside;
mod cost;
mod ladder;
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

/// A picture.
pub struct Picture {
    /// Its file name.
    pub file: &'static str,
    /// What it shows, for readers who do not see it.
    pub title: &'static str,
    /// The scenario below whose table it belongs.
    pub scenario: String,
    pub svg: String,
}

/// Returns the pictures for which there are results.
pub fn all(outcomes: &[Outcome], machine: &Machine) -> Vec<Picture> {
    let last_of = |names: &[&str]| {
        let found = outcomes.iter().rev().find(|outcome| names.contains(&outcome.scenario.name.as_str()));
        found.map(|outcome| outcome.scenario.name.clone()).unwrap_or_default()
    };
    let mut pictures = Vec::new();
    let mut add = |file, title, scenario, svg: Option<String>| {
        pictures.extend(svg.map(|svg| Picture { file, title, scenario, svg }));
    };
    if let Some(outcome) = latency::scenario(outcomes) {
        let svg = latency::draw(outcome, machine);
        add("latency.svg", "Latency by percentile", outcome.scenario.name.clone(), svg);
    }
    add("cost.svg", "CPU time of the server per echo", last_of(&cost::SCENARIOS), cost::draw(outcomes, machine));
    let throughput = throughput::draw(outcomes, machine);
    add("throughput.svg", "Echoes per second by connections", last_of(&throughput::SCENARIOS), throughput);
    let last_beside = beside::scenarios(outcomes).last().map(|outcome| outcome.scenario.name.clone());
    let beside = beside::draw(outcomes, machine);
    add("beside-bulk.svg", "Latency of a small message beside bulk streams", last_beside.unwrap_or_default(), beside);
    add("memory.svg", "Memory per idle connection", last_of(&["idle"]), memory::draw(outcomes, machine));
    let ladder = ladder::draw(outcomes, machine);
    add("ladder.svg", "What each rung of the ladder costs and brings", last_of(&ladder::SCENARIOS), ladder);
    pictures
}
