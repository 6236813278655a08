//! Parsers for option values.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Adapts a parser function to clap. The error it returns is a clause that does not repeat the value.
pub fn parser<T: Clone + Send + Sync + 'static>(
    parse: fn(&str) -> Result<T, String>,
) -> impl TypedValueParser<Value = T> {
    OsStringValueParser::new().try_map(move |raw| raw.to_str().ok_or_else(|| "not valid UTF-8".into()).and_then(parse))
}

/// Parses a whole number from 1 to `max`.
pub fn parse_count<N>(text: &str, max: N) -> Result<N, String>
where
    N: FromStr + PartialOrd + From<u8> + fmt::Display,
{
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()); // `parse` would allow "+1".
    text.parse()
        .ok()
        .filter(|number| digits && *number >= N::from(1) && *number <= max)
        .ok_or_else(|| format!("expected a whole number from 1 to {max}"))
}

/// Parses a whole number with a unit, or 0.
///
/// Written by hand, because the crates for it also accept `1h 30m`, `1.5s`, `5` or `1 month`, and a form that was accepted once
/// cannot be withdrawn.
pub fn parse_duration(text: &str, max: Duration, max_in_words: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let micros: u128 = match unit {
        "" if !number.is_empty() && number.bytes().all(|digit| digit == b'0') => 0,
        "" if !number.is_empty() => return Err(format!("missing unit, e.g. {number}s (us, ms, s, m, h)")),
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => 0,
    };
    if number.is_empty() || !(unit.is_empty() || micros > 0) {
        return Err("expected a whole number with a unit (us, ms, s, m, h), e.g. 30s".into());
    }
    // A number beyond u64 is certainly too long, and the product below cannot overflow.
    let micros = micros * u128::from(number.parse::<u64>().unwrap_or(u64::MAX));
    let fits = micros <= max.as_micros();
    fits.then(|| Duration::from_micros(micros as u64)).ok_or_else(|| format!("must be at most {max_in_words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 24 * 60 * 60);

    #[test]
    fn duration_is_a_whole_number_with_a_unit() {
        for (text, expected) in [
            ("50us", Duration::from_micros(50)),
            ("500ms", Duration::from_millis(500)),
            ("30s", Duration::from_secs(30)),
            ("10m", Duration::from_secs(600)),
            ("1h", Duration::from_secs(3600)),
            ("0", Duration::ZERO),
            ("0h", Duration::ZERO),
            ("007s", Duration::from_secs(7)),
            ("576h", MAX_TIMEOUT),
        ] {
            assert_eq!(parse_duration(text, MAX_TIMEOUT, "24 days"), Ok(expected), "{text}");
        }
    }

    #[test]
    fn malformed_duration_is_rejected() {
        let malformed = "expected a whole number with a unit (us, ms, s, m, h), e.g. 30s";
        let missing = "missing unit, e.g. 5s (us, ms, s, m, h)";
        for (text, why) in [
            ("", malformed),
            ("s", malformed),
            ("5", missing),
            ("1.5s", malformed),
            ("-1s", malformed),
            ("+1s", malformed),
            ("inf", malformed),
            ("1h30m", malformed),
            ("5 s", malformed),
            (" 5s", malformed),
            ("5S", malformed),
            ("5d", malformed),
            ("0d", malformed),
            ("٣s", malformed),
            ("577h", "must be at most 24 days"),
            ("18446744073709551615h", "must be at most 24 days"),
            ("99999999999999999999999us", "must be at most 24 days"),
        ] {
            assert_eq!(parse_duration(text, MAX_TIMEOUT, "24 days"), Err(why.into()), "{text}");
        }
    }
}
