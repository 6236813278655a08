//! The tables on standard output, at most 100 columns wide.

use std::collections::HashSet;
use std::io::{self, Write};

use super::Machine;
use super::format::shortened;
use super::table::{self, Table};
use crate::results::Outcome;
use crate::server::Spec;

/// The width of the tables.
const COLUMNS: usize = 100;

/// The width of the names of servers.
const NAME_COLUMNS: usize = 12;

/// How the figures are to be read.
pub const NOTES: &str = "\
Medians over rounds, each with a fresh process. CPU: the server's, all threads and its children.
util: the part of one core that it used. user: the part of its CPU time in user space, by the
processor's cycles or the kernel's 10 ms ticks; a dash for fewer than 100 ticks. vs: work per server
CPU second, as a ratio to the named server round by round, with the interval of the median. calls,
instr: system calls and user instructions per echo. Peers are compiled with panic=unwind, echod with
panic=abort; all with the same optimization.";

/// Prints one table per scenario.
pub fn print(outcomes: &[Outcome], servers: &[Spec], machine: &Machine, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}, {}, loopback", machine.processor, machine.kernel)?;
    writeln!(out, "{}", machine.cores)?;
    for outcome in outcomes {
        let (title, right) = table::title(outcome);
        let room = COLUMNS - right.chars().count() - 1;
        if title.chars().count() <= room {
            writeln!(out, "\n{title:<room$} {right}")?;
        } else {
            writeln!(out, "\n{}\n{right:>COLUMNS$}", shortened(&title, COLUMNS))?;
        }
        print_table(&Table::of(outcome), out)?;
    }
    writeln!(out, "\n{NOTES}")?;
    writeln!(out, "{}", shortened(&counter(machine), COLUMNS))?;
    for missing in &machine.missing {
        writeln!(out, "missing: {missing}")?;
    }
    writeln!(out)?;
    for server in measured(outcomes, servers) {
        let about = shortened(&server.about, COLUMNS - NAME_COLUMNS - 2);
        writeln!(out, "{:NAME_COLUMNS$}  {about}", server.name)?;
    }
    Ok(())
}

/// Returns the servers that took part in any scenario.
pub fn measured<'a>(outcomes: &[Outcome], servers: &'a [Spec]) -> impl Iterator<Item = &'a Spec> {
    let names: HashSet<String> = outcomes.iter().flat_map(|it| &it.rows).map(|row| row.server.clone()).collect();
    servers.iter().filter(move |server| names.contains(&server.name))
}

/// Says what counted system calls.
pub fn counter(machine: &Machine) -> String {
    match &machine.counter {
        Ok(counter) => format!("calls: counted by {counter} in a separate pass."),
        Err(reason) => format!("calls: not counted ({reason})."),
    }
}

fn print_table(table: &Table, out: &mut impl Write) -> io::Result<()> {
    let line = |name: &str, cells: &[String]| {
        let cells = cells.iter().zip(&table.widths).zip(&table.headings).map(|((cell, width), heading)| {
            let width = (*width).max(heading.chars().count());
            // A ratio with its interval reads better in the middle.
            if heading.starts_with("vs ") { format!(" {cell:^width$}") } else { format!(" {cell:>width$}") }
        });
        format!("{name:NAME_COLUMNS$}{}", cells.collect::<String>())
    };
    writeln!(out, "{}", line("", &table.headings))?;
    for (name, cells) in &table.rows {
        writeln!(out, "{}", line(name, cells))?;
    }
    for remark in &table.remarks {
        writeln!(out, "{}", shortened(remark, COLUMNS))?;
    }
    Ok(())
}
