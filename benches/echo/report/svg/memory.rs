//! Memory per idle connection.

use super::axis::{decade_part, log_ticks};
use super::page::{MARGIN, NAME_WIDTH, Page, WIDTH};
use super::style::{class, emphasis};
use crate::report::Machine;
use crate::report::format::thousands;
use crate::results::Outcome;

/// Draws it on a logarithmic scale, because the servers differ by three decades.
pub fn draw(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let outcome = outcomes.iter().find(|outcome| outcome.scenario.name == "idle")?;
    let rows: Vec<(&str, f64, f64)> = outcome
        .rows
        .iter()
        .filter_map(|row| {
            let (silent, echoed) = row.bytes_per_connection()?;
            Some((row.server.as_str(), silent.median.max(1.0), echoed.median.max(1.0)))
        })
        .collect();
    let most = rows.iter().map(|row| row.1.max(row.2)).fold(0.0, f64::max);
    let (low, high) = (10.0, decade_part(most, true).max(100.0));
    let (left, top, right) = (MARGIN + NAME_WIDTH, 100.0, WIDTH - MARGIN - 120.0);
    let pitch = 30.0;
    let bottom = top + rows.len() as f64 * pitch;
    let x = |bytes: f64| left + (bytes.max(low) / low).log10() / (high / low).log10() * (right - left);
    let mut page = Page::new(bottom + 80.0);
    let count = thousands(outcome.scenario.connections() as f64);
    page.head(
        "Memory per idle connection",
        &format!("Resident bytes of the server, {count} connections held. Logarithmic scale. Lower is better."),
    );
    for (value, labelled) in log_ticks(low, high) {
        page.line((x(value), top), (x(value), bottom), if labelled { "grid" } else { "faint grid" });
        if labelled {
            page.text((x(value), bottom + 18.0), "tick middle", &thousands(value));
        }
    }
    for (index, (name, silent, echoed)) in rows.iter().enumerate() {
        let middle = top + (index as f64 + 0.5) * pitch;
        page.text((left - 10.0, middle + 4.5), &format!("name end {}", emphasis(name)), name);
        page.line((left, middle), (x(*silent), middle), &format!("stem {}", class(name)));
        page.circle((x(*silent), middle), 5.5, &format!("{}-bar", class(name)));
        let mut label = thousands(*silent);
        if *echoed > 1.2 * silent {
            page.line((x(*silent) + 6.0, middle), (x(*echoed) - 6.0, middle), &format!("dotted {}", class(name)));
            page.circle((x(*echoed), middle), 4.5, &format!("hollow {}", class(name)));
            label = format!("{label}, {} after an echo", thousands(*echoed));
        }
        page.text((x(silent.max(*echoed)) + 13.0, middle + 4.5), &format!("value {}", emphasis(name)), &label);
    }
    page.foot(machine, (0, 0, 0.0), "exact to a few bytes");
    Some(page.finish())
}
