//! Numbers as text.

/// Returns a dash for a figure that is not known.
pub fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

/// Formats seconds with three digits and a suitable unit.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        _ if seconds < 0.999_5e-6 => (seconds * 1e9, "ns"),
        _ if seconds < 0.999_5e-3 => (seconds * 1e6, "µs"),
        _ if seconds < 0.999_5 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    let digits = match value {
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// Formats a whole number with separated thousands.
pub fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number <= -0.5 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a part as a whole percentage.
pub fn percent(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

/// Cuts a text that is longer than `columns`, and marks the cut.
pub fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns - 1).chain(['…']).collect()
}
