//! What ends the daemon before it starts: help, version, and a wrong command line.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::listen::address::printable;

/// The command line wants no daemon: print `message` and end with `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyExit {
    /// 0 after help and version, 2 where the command line is wrong.
    pub status: u8,
    /// Without a newline at its end. With status 2 it is a single line.
    pub message: String,
    /// Else stderr.
    pub to_stdout: bool,
}

impl EarlyExit {
    /// Makes the one line out of what clap found.
    pub fn from_clap(error: &clap::Error) -> EarlyExit {
        if !error.use_stderr() {
            return EarlyExit { status: 0, message: error.render().to_string().trim_end().into(), to_stdout: true };
        }
        let word = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
            _ => None,
        };
        // clap writes the option as in the usage, "--listen <ADDRESS>", "-v...", "--one-shot".
        let name =
            |kind| word(kind).and_then(|usage| usage.split([' ', '=']).next()).unwrap_or("").trim_end_matches('.');
        let (option, value) = (name(ContextKind::InvalidArg), word(ContextKind::InvalidValue).unwrap_or(""));
        let message = match error.kind() {
            ErrorKind::ValueValidation => {
                let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                format!("invalid value '{value}' for {option}: {why}")
            }
            ErrorKind::InvalidValue => format!("{option} needs a value"),
            ErrorKind::TooManyValues => format!("{option} takes no value, but has '{value}'"),
            ErrorKind::ArgumentConflict => match name(ContextKind::PriorArg) {
                other if other == option => format!("{option} is given more than once"),
                other => format!("{option} and {other} exclude each other"),
            },
            ErrorKind::UnknownArgument => {
                let typed = word(ContextKind::InvalidArg).unwrap_or("");
                let kind = if typed.starts_with('-') { "option" } else { "argument" };
                match word(ContextKind::SuggestedArg) {
                    Some(near) => format!("unknown {kind} '{typed}'; did you mean {near}?"),
                    None => format!("unknown {kind} '{typed}'; see echod --help"),
                }
            }
            ErrorKind::InvalidUtf8 => "an argument is not UTF-8".into(),
            // No option of ours can give another kind today. One line, whatever it is.
            _ => error.render().to_string().lines().next().unwrap_or("").trim_start_matches("error: ").into(),
        };
        EarlyExit { status: 2, message: format!("echod: {}", printable(&message)), to_stdout: false }
    }
}
