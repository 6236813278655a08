//! Exits before the daemon starts: help, version, errors in the command line, and `--check`.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::listen::address::printable;

/// What to print, and the exit status, if the command line does not start the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyExit {
    /// 0 for help, version and a check that succeeded, 1 for a check that failed, 2 for an invalid command line.
    pub status: u8,
    /// The text to print, without a final newline. Unless it is the help, it is a single line.
    pub message: String,
    /// Whether to print to stdout instead of stderr.
    pub to_stdout: bool,
}

impl EarlyExit {
    /// Converts the result of `--check`: its line with status 0, or the reason for the failure with status 1.
    pub fn from_check(result: Result<String, String>) -> EarlyExit {
        match result {
            Ok(message) => EarlyExit { status: 0, message, to_stdout: true },
            Err(why) => EarlyExit { status: 1, message: format!("echod: {why}"), to_stdout: false },
        }
    }

    /// Converts an error of clap. clap's own message spans several lines, so the single line is composed here.
    pub fn from_clap(error: &clap::Error) -> EarlyExit {
        if !error.use_stderr() {
            return EarlyExit { status: 0, message: error.render().to_string().trim_end().into(), to_stdout: true };
        }
        let word = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
            _ => None,
        };
        // clap gives the option as in its usage: "--listen <ADDRESS>", "-v...", "--one-shot".
        let name =
            |kind| word(kind).and_then(|usage| usage.split([' ', '=']).next()).unwrap_or("").trim_end_matches('.');
        let (option, value) = (name(ContextKind::InvalidArg), word(ContextKind::InvalidValue).unwrap_or(""));
        let message = match error.kind() {
            ErrorKind::ValueValidation => {
                let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                format!("invalid value '{value}' for {option}: {why}")
            }
            ErrorKind::InvalidValue => format!("{option} requires a value"),
            ErrorKind::TooManyValues => format!("{option} does not take a value (got '{value}')"),
            ErrorKind::ArgumentConflict => match name(ContextKind::PriorArg) {
                other if other == option => format!("{option} may only be given once"),
                other => format!("{option} and {other} cannot be used together"),
            },
            ErrorKind::UnknownArgument => {
                let typed = word(ContextKind::InvalidArg).unwrap_or("");
                let kind = if typed.starts_with('-') { "option" } else { "argument" };
                match word(ContextKind::SuggestedArg) {
                    Some(near) => format!("unknown {kind} '{typed}'; did you mean {near}?"),
                    None => format!("unknown {kind} '{typed}'; see echod --help"),
                }
            }
            ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".into(),
            // No option causes another kind today. If one ever does, the first line of clap's message is used.
            _ => error.render().to_string().lines().next().unwrap_or("").trim_start_matches("error: ").into(),
        };
        EarlyExit { status: 2, message: format!("echod: {}", printable(&message)), to_stdout: false }
    }
}
