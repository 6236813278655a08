//! The daemon from the command line to the exit status. To study the event loop, start at `Server::run` in
//! `event_loop/server.rs`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use echod::daemon::early_exit::EarlyExit;
use echod::daemon::monitoring::{self, Monitoring};
use echod::daemon::options::Options;
use echod::daemon::output::{self, NonBlockingWriter};
use echod::daemon::systemd::{self, Notifier};
use echod::daemon::{check, limits, logging, signals, startup};
use echod::event_loop::counters::Counters;
use echod::event_loop::monitor::Monitor;
use echod::event_loop::observer::Silent;
use echod::event_loop::server::Server;
use echod::event_loop::settings::Settings;
use echod::explain::Explainer;
use echod::listen::address::Address;
use echod::listen::listener::Listener;
use echod::listen::socket::{max_socket_buffer, somaxconn};
use echod::metrics::endpoint::Endpoint;
use log::{info, warn};
use signal_hook_mio::v1_0::Signals;

fn main() -> ExitCode {
    signals::block_output_signals();
    let options = match Options::parse(std::env::args_os()) {
        Ok(options) => options,
        Err(exit) => return print_and_exit(&exit),
    };
    if let Some(address) = &options.check {
        signals::unblock(); // Unhandled, they end the check.
        return print_and_exit(&EarlyExit::from_check(check::check(address)));
    }
    // Before anything else is opened: see its documentation.
    let inherited = systemd::listeners_from_env(options.socket_buffer);
    logging::init_log(options.level);
    let status = match inherited.and_then(|inherited| serve(&options, inherited)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            output::print_error(format_args!("echod: {message}"));
            ExitCode::FAILURE
        }
    };
    output::flush_stderr();
    status
}

/// Prints help and version to stdout, an error in the command line to stderr.
fn print_and_exit(exit: &EarlyExit) -> ExitCode {
    let mut status = exit.status;
    if !exit.to_stdout {
        output::print_error(&exit.message);
    } else if let Err(error) = writeln!(io::stdout(), "{}", exit.message) {
        output::print_error(format_args!("echod: cannot write to stdout: {error}"));
        status = 1;
    }
    output::flush_stderr();
    ExitCode::from(status)
}

/// Binds, runs the event loop and returns when it has stopped. The error is a one-line message.
fn serve(options: &Options, inherited: Vec<Listener>) -> Result<(), String> {
    let limit = limits::raise_limit();
    let requested = options.max_connections.map(|requested| requested as usize);
    // Checked twice: first with an estimate, since otherwise a limit that is far too low would only show as EMFILE somewhere.
    limits::max_connections(requested, limit, descriptors_to_open(options, &inherited))?;
    // Before listening, so that a signal is handled as soon as anyone can know that the daemon is up.
    let mut signals = signals::register().map_err(|error| format!("cannot handle signals: {error}"))?;
    let Some(listeners) = bind(options, inherited, &mut signals.signals)? else {
        info!("stopped by a signal during startup");
        return Ok(());
    };
    let monitoring = monitoring(options)?;
    print_addresses(&listeners, &monitoring).map_err(|error| format!("cannot write to stdout: {error}"))?;

    let max_connections = limits::max_connections(requested, limit, monitoring.descriptors_to_open())?;
    if let Some(requested) = requested.filter(|&requested| requested > max_connections) {
        warn!("--max-connections {requested} exceeds the file descriptor limit ({limit}); using {max_connections}");
    }
    info!("echod {}: at most {max_connections} connections", env!("CARGO_PKG_VERSION"));
    let settings = Settings {
        one_shot: options.one_shot,
        max_connections,
        idle_timeout: options.idle_timeout,
        drain_timeout: options.drain_timeout,
        buffer_size: options.buffer_size,
        max_tcp_read: options.max_tcp_read,
        max_buffered: options.max_buffered,
        busy_poll: options.busy_poll,
    };
    let mut server: Server<Monitoring> = Server::new(settings, listeners, monitoring, signals)
        .map_err(|error| format!("cannot create the event loop: {error}"))?;
    let outcome = if options.explain {
        let mut explainer = Explainer::new(io::stdout()).map_err(|error| format!("cannot write to stdout: {error}"))?;
        let outcome = server.run(&mut explainer);
        explainer.stopped();
        outcome
    } else {
        server.run(&mut Silent)
    };
    outcome.map_err(|error| format!("event loop failed: {error}"))?;
    info!("stopped; {}", monitoring::describe(&server.counters()));
    Ok(())
}

/// Returns how many descriptors startup opens at least: the signal pipe, a listener for each address, and monitoring.
fn descriptors_to_open(options: &Options, inherited: &[Listener]) -> usize {
    let endpoint = options.metrics.as_ref().map_or(0, |_| Endpoint::DESCRIPTORS);
    let notifier = if Notifier::is_wanted() { Notifier::DESCRIPTORS } else { 0 };
    2 + addresses_to_bind(options, inherited).len() + endpoint + notifier
}

/// Returns the addresses to bind. If a service manager has passed sockets, the default address is not bound.
fn addresses_to_bind<'a>(options: &'a Options, inherited: &[Listener]) -> &'a [Address] {
    if inherited.is_empty() || options.listen_given { &options.listen } else { &[] }
}

/// Binds every address, in addition to the sockets that a service manager has passed. Returns `None` if a signal to stop
/// arrives while a name is being resolved.
fn bind(options: &Options, inherited: Vec<Listener>, signals: &mut Signals) -> Result<Option<Vec<Listener>>, String> {
    let addresses = addresses_to_bind(options, &inherited);
    let mut listeners = inherited;
    let listen_options = options.listen_options();
    for address in addresses {
        let bound = if let Address::Host { .. } = address {
            let address = address.clone();
            let print_counters = || Monitoring::default().print_counters(&Counters::default());
            match startup::interruptible(signals, print_counters, move || address.bind(&listen_options)) {
                Ok(Some(bound)) => bound,
                Ok(None) => return Ok(None),
                Err(error) => return Err(format!("cannot wait for name resolution: {error}")),
            }
        } else {
            address.bind(&listen_options)
        };
        listeners.extend(bound.map_err(|error| error.to_string())?);
    }
    if let Some(max) = somaxconn().filter(|&max| max < options.backlog) {
        warn!("the kernel limits --backlog {} to {max} (net.core.somaxconn)", options.backlog);
    }
    if let Some((max, bytes)) = max_socket_buffer().zip(options.socket_buffer).filter(|(max, bytes)| max < bytes) {
        warn!("the kernel limits --socket-buffer {bytes} to {max} (net.core.rmem_max, net.core.wmem_max)");
    }
    Ok(Some(listeners))
}

/// Sets up the metrics endpoint and the notifications that the command line and the environment ask for.
fn monitoring(options: &Options) -> Result<Monitoring, String> {
    let endpoint = options.metrics.as_ref().map(Endpoint::bind).transpose().map_err(|error| error.to_string())?;
    Ok(Monitoring { endpoint, notifier: Notifier::from_env() })
}

/// Prints a `listening on` line for each socket, before the first accept.
fn print_addresses(listeners: &[Listener], monitoring: &Monitoring) -> io::Result<()> {
    let mut stdout = NonBlockingWriter::new(io::stdout())?;
    let endpoint = monitoring.endpoint.iter().map(Endpoint::local);
    for url in listeners.iter().map(Listener::local).chain(endpoint) {
        stdout.try_write_line(&format!("listening on {url}"))?;
    }
    Ok(())
}
