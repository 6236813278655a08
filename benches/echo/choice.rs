//! Which scenarios are run, and which servers are measured.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::baseline::Baseline;
use crate::generator::{Result, Stream};
use crate::options::{Addresses, Options};
use crate::peers::{self, ladder};
use crate::scenarios::{Scenario, Work};
use crate::server::{Origin, Spec};

/// Names that `--command` may not use as a label.
const OWN_NAMES: [&str; 5] = ["echod", "echod-0us", "echod-50us", "other", "remote"];

/// Returns the scenarios to run. An error is a wrong option.
pub fn scenarios(options: &Options) -> Result<Vec<Scenario>> {
    let mut all = Scenario::all(options.streams.map(|streams| streams as usize));
    let names = all.iter().map(|scenario| scenario.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(wrong) = options.scenario.iter().find(|name| !all.iter().any(|scenario| scenario.has_name(name))) {
        return Err(format!("no scenario '{wrong}'; there are: {names}").into());
    }
    let is_named = !options.scenario.is_empty() || options.filter.is_some();
    if options.chooses_load() && !is_named {
        return Ok(vec![custom(options)?]);
    }
    all.retain(|scenario| match &options.scenario[..] {
        [] => options.full || options.filter.is_some() || scenario.is_default,
        chosen => chosen.iter().any(|name| scenario.has_name(name)),
    });
    if let Some(filter) = &options.filter {
        all.retain(|scenario| scenario.name.contains(filter.as_str()));
    }
    if options.streams.is_some() && !is_named {
        all.retain(|scenario| matches!(scenario.work, Work::BesideBulk { .. }));
    }
    if all.is_empty() {
        let filter = options.filter.as_deref().unwrap_or_default();
        return Err(format!("no scenario matches '{filter}'; there are: {names}").into());
    }
    for scenario in &mut all {
        override_load(scenario, options)?;
    }
    Ok(all)
}

/// Returns a scenario of the user's own: an open loop with `--rate`, else a closed one.
fn custom(options: &Options) -> Result<Scenario> {
    let connections = options.connections.unwrap_or(50) as usize;
    let message = options.message.unwrap_or(64) as usize;
    let in_flight = options.in_flight.unwrap_or(1);
    let work = match options.rate {
        Some(_) if options.in_flight.is_some() => {
            return Err("--in-flight limits a closed loop, --rate makes an open one: use only one of them".into());
        }
        Some(rate) => Work::Open { connections, message, rate },
        None => Work::Closed { connections, message, in_flight },
    };
    Ok(Scenario::new("custom", work, true))
}

/// Replaces what was chosen by hand. A scenario whose name states its number of connections cannot have another one.
fn override_load(scenario: &mut Scenario, options: &Options) -> Result<()> {
    let wrong = |option: &str| -> Result<()> {
        Err(format!(
            "{option} does not go with scenario '{}'; leave the name out for a load of your own",
            scenario.name
        )
        .into())
    };
    let (chosen_connections, chosen_message) = (options.connections.map(|it| it as usize), options.message);
    match &mut scenario.work {
        Work::Closed { message, in_flight, .. } => {
            if chosen_connections.is_some() {
                return wrong("--connections");
            }
            *message = chosen_message.map_or(*message, |bytes| bytes as usize);
            *in_flight = options.in_flight.unwrap_or(*in_flight);
        }
        Work::Open { connections, message, rate } => {
            if options.in_flight.is_some() {
                return wrong("--in-flight");
            }
            if options.rate.is_some() && scenario.name.starts_with("poll-") {
                return wrong("--rate");
            }
            *connections = chosen_connections.unwrap_or(*connections);
            *message = chosen_message.map_or(*message, |bytes| bytes as usize);
            *rate = options.rate.unwrap_or(*rate);
        }
        Work::Churn { lanes, message } => {
            *lanes = chosen_connections.unwrap_or(*lanes);
            *message = chosen_message.map_or(*message, |bytes| bytes as usize);
        }
        Work::Idle { connections } | Work::Stream { connections } => {
            *connections = chosen_connections.unwrap_or(*connections);
        }
        Work::BesideBulk { message, in_flight, .. } => {
            if chosen_connections.is_some() {
                return wrong("--connections");
            }
            *message = chosen_message.map_or(*message, |bytes| bytes as usize);
            *in_flight = options.in_flight.unwrap_or(*in_flight);
        }
    }
    Ok(())
}

/// Returns the servers to measure, and which ones are missing, with the reason. An error is a wrong option.
pub fn servers(options: &Options, baseline: Option<&Baseline>) -> Result<(Vec<Spec>, Vec<String>)> {
    let peer_names: Vec<&str> = peers::all().map(|(name, _)| name).collect();
    let is_known = |name: &&str| ["none", ladder::GROUP].contains(name) || peer_names.contains(name);
    if let Some(wrong) = options.peers.iter().map(String::as_str).find(|name| !is_known(name)) {
        return Err(format!("no peer '{wrong}'; there are: {}, {}", peer_names.join(", "), ladder::GROUP).into());
    }
    let mut servers = Vec::new();
    let mut missing = Vec::new();
    let announcing = |name: &str, about: &str, command: &[&OsStr]| Spec {
        name: name.to_owned(),
        about: about.to_owned(),
        origin: Origin::Announcing(command.iter().map(|&word| word.to_owned()).collect()),
    };
    let itself = env::current_exe()?;
    let has_none = options.peers.is_empty() && (options.connect.is_some() || baseline.is_some());
    for (name, about) in peers::all() {
        let chosen = !has_none && peers::is_chosen(name, &options.peers);
        match peers::python_source(name) {
            _ if !chosen => {}
            Some(_) if !has_python() => missing.push(format!("{name}: python3 not found")),
            Some(script) => {
                servers.push(announcing(name, about, &["python3".as_ref(), "-c".as_ref(), script.as_ref()]))
            }
            None => {
                let arguments = peers::arguments(name).into_iter().map(OsStr::new);
                let command: Vec<&OsStr> = [itself.as_ref()].into_iter().chain(arguments).collect();
                servers.push(announcing(name, about, &command));
            }
        }
    }
    let echod = |name: &str, about: &str, path: &Path, more: &[&str]| {
        let mut command: Vec<&OsStr> = vec![path.as_ref(), "-q".as_ref(), "--listen".as_ref(), "127.0.0.1:0".as_ref()];
        command.extend(more.iter().map(|word| OsStr::new(*word)));
        announcing(name, about, &command)
    };
    let mut ours = Vec::new();
    if let Some(Addresses(addresses)) = &options.connect {
        let about = match options.pid {
            Some(pid) => format!("already running, process {pid}, not pinned to a core"),
            None => "already running, process unknown".to_owned(),
        };
        let origin = Origin::Running(addresses.clone(), options.pid);
        ours.push(Spec { name: "remote".to_owned(), about, origin });
    } else {
        let path = Path::new(env!("CARGO_BIN_EXE_echod"));
        ours.push(echod("echod", "this build, default options", path, &[]));
        ours.push(echod("echod-0us", "this build with --busy-poll 0", path, &["--busy-poll", "0"]));
        ours.push(echod("echod-50us", "this build with --busy-poll 50us", path, &["--busy-poll", "50us"]));
    }
    if let Some(path) = &options.other {
        ours.push(echod("other", "another build of echod", path, &[]));
    }
    if let Some(baseline) = baseline.filter(|_| options.connect.is_none()) {
        if OWN_NAMES.contains(&baseline.name.as_str()) || peer_names.contains(&baseline.name.as_str()) {
            return Err(format!("--baseline: '{}' is the name of a server", baseline.name).into());
        }
        ours.insert(1, echod(&baseline.name, &baseline.about, &baseline.echod, &[]));
    }
    for command in &options.command {
        let name = command.label.as_str();
        if OWN_NAMES.contains(&name) || peer_names.contains(&name) || ours.iter().any(|other: &Spec| other.name == name)
        {
            return Err(format!("--command: the label '{name}' is already in use").into());
        }
        let about = command.words.join(" ");
        ours.push(Spec { name: name.to_owned(), about, origin: Origin::Command(command.words.clone()) });
    }
    // After bare-epoll, which the others are compared with.
    let place = usize::from(servers.first().is_some_and(|first| first.name == "bare-epoll"));
    servers.splice(place..place, ours);
    if let Some(name) = options.reference.as_ref().filter(|name| !servers.iter().any(|server| server.name == **name)) {
        return Err(format!("--reference: no server '{name}' is measured").into());
    }
    Ok((servers, missing))
}

fn has_python() -> bool {
    let version = Command::new("python3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Leaves of each running server's addresses the first one that accepts a connection.
pub fn find_running(servers: &mut [Spec]) -> Result<()> {
    for server in servers {
        let Origin::Running(addresses, pid) = &mut server.origin else { continue };
        let mut errors = Vec::new();
        let accepting = addresses.iter().find(|address| match Stream::connect(address) {
            Ok(_) => true,
            Err(error) => {
                errors.push(format!("{address}: {error}"));
                false
            }
        });
        let Some(address) = accepting else { return Err(format!("--connect: {}", errors.join("; ")).into()) };
        server.about = format!("{address}, {}", server.about);
        *addresses = vec![address.clone()];
        if let Some(pid) = pid.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            return Err(format!("--pid: process {pid} does not exist").into());
        }
    }
    Ok(())
}

/// Returns the server that ratios refer to: the chosen one, or else bare-epoll, or else the first of a scenario.
pub fn reference(chosen: Option<&str>, servers: &[&Spec]) -> Option<String> {
    let wanted = chosen.unwrap_or("bare-epoll");
    let found = servers.iter().find(|server| server.name == wanted).or(servers.first())?;
    Some(found.name.clone())
}
