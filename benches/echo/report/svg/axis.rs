//! Scales and ticks.

/// Returns the nearest of 1, 2, 5, 10, … times a power of ten that is not below (`up`) or above a value.
pub fn decade_part(value: f64, up: bool) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let parts = [1.0, 2.0, 5.0, 10.0].map(|part| part * decade);
    if up {
        parts.into_iter().find(|part| *part >= value).unwrap_or(10.0 * decade)
    } else {
        parts.into_iter().rfind(|part| *part <= value).unwrap_or(decade)
    }
}

/// Returns the step of an axis: 1, 2 or 5 times a power of ten.
pub fn round_step(about: f64) -> f64 {
    decade_part(about, true)
}

/// Returns 1, 2 and 5 in every decade, and whether a value has a label.
pub fn log_ticks(low: f64, high: f64) -> Vec<(f64, bool)> {
    let few = (high / low).log10() < 1.5;
    let mut ticks = Vec::new();
    let mut decade = 10_f64.powf(low.log10().floor());
    while decade <= high * 1.001 {
        for part in [1.0, 2.0, 5.0] {
            let tick = part * decade;
            if (low * 0.999..=high * 1.001).contains(&tick) {
                ticks.push((tick, part == 1.0 || few));
            }
        }
        decade *= 10.0;
    }
    ticks
}

/// Formats a round duration without decimals.
pub fn tick_time(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.999e-3 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds < 0.999 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.0} s"),
    }
}
