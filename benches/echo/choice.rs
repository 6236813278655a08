//! Which scenarios are run, and which servers are measured.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::generator::Result;
use crate::options::Options;
use crate::peers;
use crate::scenarios::Scenario;
use crate::server::{Origin, Spec};

/// Returns the scenarios to run.
pub fn scenarios(options: &Options) -> Result<Vec<Scenario>> {
    let mut all = Scenario::all();
    if let Some(wrong) = options.scenario.iter().find(|name| !all.iter().any(|scenario| scenario.name == *name)) {
        return Err(
            format!("no scenario {wrong}; there are: {}", names(all.iter().map(|scenario| scenario.name))).into()
        );
    }
    all.retain(|scenario| match &options.scenario[..] {
        [] => options.full || scenario.usual,
        chosen => chosen.iter().any(|name| name == scenario.name),
    });
    Ok(all)
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Returns the servers to measure, and which ones are missing, with the reason.
pub fn servers(options: &Options) -> Result<(Vec<Spec>, Vec<String>)> {
    if let Some(wrong) =
        options.peers.iter().find(|name| *name != "none" && !peers::ALL.iter().any(|(peer, _)| peer == name))
    {
        return Err(format!("no peer {wrong}; there are: {}", peers::ALL.map(|(name, _)| name).join(", ")).into());
    }
    let mut servers = Vec::new();
    let mut missing = Vec::new();
    let spec = |name: &str, about, command: &[&OsStr]| Spec {
        name: name.to_owned(),
        about,
        origin: Origin::Command(command.iter().map(|&word| word.to_owned()).collect()),
    };
    let itself = env::current_exe()?;
    let has_python =
        Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success());
    for (name, about) in peers::ALL {
        let chosen = match &options.peers[..] {
            [] => options.connect.is_none(),
            chosen => chosen.iter().any(|peer| peer == name),
        };
        match peers::python_source(name) {
            _ if !chosen => {}
            Some(_) if !has_python => missing.push(format!("{name}: python3 not found")),
            Some(script) => servers.push(spec(name, about, &["python3".as_ref(), "-c".as_ref(), script.as_ref()])),
            None => servers.push(spec(name, about, &[itself.as_ref(), "--serve".as_ref(), name.as_ref()])),
        }
    }
    // After bare-epoll, which the others are compared with.
    let place = usize::from(servers.first().is_some_and(|first| first.name == "bare-epoll"));
    let echod = |name: &str, about, path: &Path, more: &[&str]| {
        let mut command: Vec<&OsStr> = vec![path.as_ref(), "-q".as_ref(), "--listen".as_ref(), "127.0.0.1:0".as_ref()];
        command.extend(more.iter().map(|word| -> &OsStr { word.as_ref() }));
        spec(name, about, &command)
    };
    let mut ours = Vec::new();
    match options.connect {
        Some(address) => {
            ours.push(Spec { name: "remote".to_owned(), about: "already running", origin: Origin::Running(address) });
        }
        None => {
            let path = Path::new(env!("CARGO_BIN_EXE_echod"));
            ours.push(echod("echod", "this build", path, &[]));
            ours.push(echod("echod-busy", "this build with --busy-poll 50us", path, &["--busy-poll", "50us"]));
        }
    }
    if let Some(path) = &options.other {
        ours.push(echod("other", "another build of echod", path, &[]));
    }
    servers.splice(place..place, ours);
    Ok((servers, missing))
}
