//! The arithmetic behind the tables.

use std::time::Duration;

use crate::bench::order;
use crate::generator::new_histogram;
use crate::results::compare::{Change, Verdict};
use crate::results::{Round, Row, Spread, skipped_at_each_end};
use crate::server::Cpu;

#[test]
fn median_is_middle_value() {
    let spread = |values: &[f64]| Spread::of(values.iter().copied());
    assert!(spread(&[]).is_none());
    let odd = spread(&[3.0, 1.0, 2.0]).expect("three values");
    assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
    assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).expect("four values").median, 2.5);
}

#[test]
fn interval_of_median_matches_published_tables() {
    // Ranks of the sign test's interval, as in W. J. Conover, Practical Nonparametric Statistics, table A3.
    for (count, skipped, confidence) in [(5, 0, 0.9375), (6, 0, 0.96875), (9, 1, 0.9609), (11, 2, 0.9346)] {
        let (found, reached) = skipped_at_each_end(count);
        assert_eq!(found, skipped, "{count} values");
        assert!((reached - confidence).abs() < 1e-4, "{count} values: {reached}");
    }
    assert_eq!(skipped_at_each_end(1), (0, 0.0));
}

#[test]
fn order_is_balanced() {
    for servers in 1..9 {
        let rounds = if servers % 2 == 0 { servers } else { 2 * servers };
        let mut followers = vec![vec![0; servers]; servers];
        for round in 0..rounds {
            let order = order(round, servers);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..servers).collect::<Vec<_>>(), "each server once");
            order.windows(2).for_each(|pair| followers[pair[0]][pair[1]] += 1);
        }
        let expected = rounds / servers;
        for (one, row) in followers.iter().enumerate() {
            for (other, count) in row.iter().enumerate().filter(|(other, _)| *other != one) {
                assert_eq!(*count, expected, "{other} after {one} of {servers}");
            }
        }
    }
}

/// Returns values around 1 with a spread of some percent, and rare outliers, as on a busy machine.
fn noisy(random: &mut fastrand::Rng, count: usize) -> Vec<f64> {
    let mut value = || {
        let noise: f64 = (0..12).map(|_| random.f64() - 0.5).sum();
        let outlier = if random.u32(..10) == 0 { 1.5 } else { 1.0 };
        (1.0 + 0.05 * noise) * outlier
    };
    (0..count).map(|_| value()).collect()
}

#[test]
fn same_build_is_unchanged_in_19_of_20_runs() {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut paired_alarms, mut sample_alarms) = (0, 0);
    let runs = 4000;
    for _ in 0..runs {
        let (new, old) = (noisy(&mut random, 11), noisy(&mut random, 11));
        let pairs: Vec<(f64, f64)> = new.iter().copied().zip(old.iter().copied()).collect();
        let paired = Change::of_pairs(&pairs, 0.05).expect("11 pairs are enough");
        let sampled = Change::of_samples(&new, &old, 0.05).expect("11 values each are enough");
        paired_alarms += usize::from(paired.verdict(true) != Verdict::NoChange);
        sample_alarms += usize::from(sampled.verdict(true) != Verdict::NoChange);
    }
    // At most 5 %, and not so few that the verdict would be blind.
    for alarms in [paired_alarms, sample_alarms] {
        assert!((runs / 40..=runs / 18).contains(&alarms), "{alarms} of {runs}");
    }
}

#[test]
fn slower_build_is_found_in_both_directions() {
    let mut random = fastrand::Rng::with_seed(2);
    let old = noisy(&mut random, 11);
    let new: Vec<f64> = noisy(&mut random, 11).iter().map(|value| value * 1.5).collect();
    let pairs: Vec<(f64, f64)> = new.iter().copied().zip(old.iter().copied()).collect();
    for change in [Change::of_pairs(&pairs, 0.01), Change::of_samples(&new, &old, 0.01)] {
        let change = change.expect("11 values are enough");
        assert_eq!((change.verdict(true), change.verdict(false)), (Verdict::Slower, Verdict::Faster), "{change:?}");
        assert!(change.is_worse_by(0.1, true) && !change.is_worse_by(0.1, false), "{change:?}");
        assert!(!change.is_worse_by(1.0, true), "{change:?}");
        assert!((1.3..1.7).contains(&change.factor), "{change:?}");
    }
}

#[test]
fn too_few_rounds_give_no_interval() {
    let pairs = [(1.0, 1.1); 5];
    assert!(Change::of_pairs(&pairs, 0.05).is_none(), "five pairs reach only 93.75 %");
    assert!(Change::of_pairs(&[pairs[0]; 6], 0.05).is_some());
    assert!(Change::of_samples(&[1.0; 3], &[1.0; 3], 0.05).is_none());
    assert!(Change::of_samples(&[1.0; 4], &[1.0; 4], 0.05).is_some());
}

/// Returns a round of one second in which the server used some ticks of 10 ms.
fn round(user_ticks: u64, system_ticks: u64) -> Round {
    let total = Duration::from_millis(10 * (user_ticks + system_ticks));
    Round {
        echoes: 1000,
        bytes: 64_000,
        window: Duration::from_secs(1),
        latency: new_histogram(),
        new_connections: None,
        lateness: new_histogram(),
        cpu: Some(Cpu { total, user_ticks, system_ticks }),
        generator_lost: Duration::ZERO,
        server_lost: Duration::ZERO,
        started: Duration::ZERO,
        position: 0,
        repeats: 0,
    }
}

#[test]
fn user_part_of_few_ticks_is_unknown() {
    let mut row = Row::new("server");
    row.rounds.push(round(10, 80));
    assert!(row.user_part().is_none(), "90 ticks say little");
    row.rounds.push(round(15, 15));
    assert_eq!(row.user_part(), Some(25.0 / 120.0));
}

#[test]
fn lost_time_of_either_core_is_a_disturbance() {
    let mut round = round(10, 80);
    assert_eq!(round.disturbance(), 0.0);
    round.generator_lost = Duration::from_millis(100);
    round.server_lost = Duration::from_millis(300);
    assert_eq!(round.disturbance(), 0.3);
}
