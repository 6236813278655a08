//! The daemon: options, log, bind, run, exit status. Start reading at `server::Server::run`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use echod::daemon::early_exit::EarlyExit;
use echod::daemon::monitoring::{self, Monitoring};
use echod::daemon::options::Options;
use echod::daemon::output::{self, NonBlockingWriter};
use echod::daemon::systemd::{self, Notifier};
use echod::daemon::{limits, logging, signals};
use echod::event_loop::observer::Silent;
use echod::event_loop::server::Server;
use echod::event_loop::settings::Settings;
use echod::explain::Explainer;
use echod::listen::listener::Listener;
use echod::listen::socket::somaxconn;
use echod::metrics::endpoint::Endpoint;
use log::{info, warn};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os()) {
        Ok(options) => options,
        Err(exit) => return print_and_exit(&exit),
    };
    let inherited = systemd::listeners_from_env(); // Before we open anything: see there.
    logging::init_log(options.level);
    match inherited.and_then(|inherited| serve(&options, inherited)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            output::print_error(format_args!("echod: {message}"));
            ExitCode::FAILURE
        }
    }
}

/// `--help` and `--version` go to stdout, what is wrong with the command line to stderr.
fn print_and_exit(exit: &EarlyExit) -> ExitCode {
    if !exit.to_stdout {
        output::print_error(&exit.message);
    } else if let Err(error) = writeln!(io::stdout(), "{}", exit.message) {
        output::print_error(format_args!("echod: cannot write to stdout: {error}"));
        return ExitCode::FAILURE;
    }
    ExitCode::from(exit.status)
}

/// Everything between the command line and the exit status. The error is one line for a person.
fn serve(options: &Options, inherited: Vec<Listener>) -> Result<(), String> {
    let limit = limits::raise_limit();
    // Before we listen, so that no signal finds us unprepared once somebody knows that we do.
    let signals = signals::register().map_err(|error| format!("cannot handle signals: {error}"))?;
    let listeners = bind(options, inherited)?;
    let monitoring = monitoring(options)?;
    print_addresses(&listeners, &monitoring).map_err(|error| format!("cannot write to stdout: {error}"))?;

    let requested = options.max_connections.map(|requested| requested as usize);
    let max_connections = limits::max_connections(requested, limit, listeners.len() + monitoring.descriptors());
    if let Some(requested) = requested.filter(|&requested| requested > max_connections) {
        warn!("--max-connections {requested} is lowered to {max_connections}: RLIMIT_NOFILE is {limit}");
    }
    info!("echod {}: at most {max_connections} connections", env!("CARGO_PKG_VERSION"));
    let settings = Settings {
        one_shot: options.one_shot,
        max_connections,
        idle_timeout: options.idle_timeout,
        drain_timeout: options.drain_timeout,
        buffer_size: options.buffer_size,
        max_buffered: 64 << 20,
        busy_poll: options.busy_poll,
    };
    let mut server: Server<Monitoring> = Server::new(settings, listeners, monitoring, signals)
        .map_err(|error| format!("cannot start polling: {error}"))?;
    let outcome = if options.explain {
        let mut explainer = Explainer::new(io::stdout()).map_err(|error| format!("cannot write to stdout: {error}"))?;
        let outcome = server.run(&mut explainer);
        explainer.stopped();
        outcome
    } else {
        server.run(&mut Silent)
    };
    outcome.map_err(|error| format!("cannot go on: {error}"))?;
    info!("stopped; {}", monitoring::describe(&server.counters()));
    Ok(())
}

/// Binds every address, beside the sockets that a service manager has passed. With those, the default is not bound.
fn bind(options: &Options, inherited: Vec<Listener>) -> Result<Vec<Listener>, String> {
    let mut listeners = inherited;
    let wanted = if listeners.is_empty() || options.listen_given { &options.listen[..] } else { &[] };
    for address in wanted {
        listeners.extend(address.bind(&options.listen_options()).map_err(|error| error.to_string())?);
    }
    if let Some(max) = somaxconn().filter(|&max| max < options.backlog) {
        warn!("--backlog {} is lowered to {max} by the kernel (net.core.somaxconn)", options.backlog);
    }
    Ok(listeners)
}

/// Whoever looks after us, by what the command line and the environment say.
fn monitoring(options: &Options) -> Result<Monitoring, String> {
    let endpoint = options.metrics.map(Endpoint::bind).transpose().map_err(|error| error.to_string())?;
    Ok(Monitoring { endpoint, notifier: Notifier::from_env() })
}

/// Says where we listen, a line each, before the first accept.
fn print_addresses(listeners: &[Listener], monitoring: &Monitoring) -> io::Result<()> {
    let mut stdout = NonBlockingWriter::new(io::stdout())?;
    let endpoint = monitoring.endpoint.iter().map(Endpoint::local);
    for url in listeners.iter().map(Listener::local).chain(endpoint) {
        stdout.try_write_line(&format!("listening on {url}"))?;
    }
    Ok(())
}
