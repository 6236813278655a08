//! The arithmetic behind the tables.

use crate::results::Spread;

#[test]
fn median_is_middle_value() {
    let spread = |values: &[f64]| Spread::of(values.iter().copied());
    assert!(spread(&[]).is_none());
    let odd = spread(&[3.0, 1.0, 2.0]).expect("three values");
    assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
    assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).expect("four values").median, 2.5);
}
