//! The machine and the build that were measured.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde_json::{Value, json};

use crate::read_or_empty;
use crate::server::counter::Counter;

/// What is recorded about the machine and the run.
pub struct Machine {
    /// The processor's model name.
    pub processor: String,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Which core runs the server and which one the generator.
    pub cores: String,
    /// What counted system calls, or why they were not counted.
    pub counter: Result<&'static str, String>,
    /// Servers that could not be measured, and why.
    pub missing: Vec<String>,
    /// When the run started, RFC 3339 in UTC.
    pub started: String,
    /// Further facts, for the records only.
    facts: Value,
}

impl Machine {
    /// Reads /proc, /sys and uname(2), and asks git and rustc for their versions.
    pub fn record(cores: String, counter: &Result<Counter, String>, missing: &[String]) -> Machine {
        let cpuinfo = read_or_empty("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let uname = rustix::system::uname();
        Machine {
            processor: model.map_or("unnamed processor", |(_, name)| name).to_owned(),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            cores,
            counter: counter.clone().map(|counter| match counter {
                Counter::Perf => "perf",
                Counter::Strace => "strace",
            }),
            missing: missing.to_vec(),
            started: jiff::Timestamp::now()
                .round(jiff::Unit::Second)
                .unwrap_or_else(|_| jiff::Timestamp::now())
                .to_string(),
            facts: facts(&cpuinfo),
        }
    }

    /// Returns everything for `results.json`.
    pub fn to_json(&self) -> Value {
        json!({
            "processor": self.processor,
            "kernel": self.kernel,
            "cores": self.cores,
            "system_calls_counted_by": self.counter.as_ref().ok(),
            "system_calls_not_counted_because": self.counter.as_ref().err(),
            "details": self.facts,
        })
    }
}

fn facts(cpuinfo: &str) -> Value {
    let is_virtual = cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let memory = read_or_empty("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let load = read_or_empty("/proc/loadavg");
    let load: Vec<f64> = load.split_whitespace().take(3).filter_map(|number| number.parse().ok()).collect();
    json!({
        "governor": trimmed("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "runs_under_hypervisor": is_virtual,
        "system_vendor": trimmed("/sys/class/dmi/id/sys_vendor"),
        "vulnerabilities": vulnerabilities(),
        "memory_kB": memory.and_then(|number| number.parse::<u64>().ok()),
        "load_average_at_start": load,
        "tcp_congestion_control": trimmed("/proc/sys/net/ipv4/tcp_congestion_control"),
    })
}

/// Returns what the kernel says about each processor vulnerability: the mitigations cost time in every system call.
fn vulnerabilities() -> Value {
    let directory = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let pairs = entries.filter_map(|entry| {
        let state = fs::read_to_string(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), Value::from(state.trim())))
    });
    Value::Object(pairs.collect())
}

/// Returns what is known about the build of echod and of the peers.
pub fn build() -> Value {
    let echod = env!("CARGO_BIN_EXE_echod");
    let manifest = env!("CARGO_MANIFEST_DIR");
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(manifest).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": output("git", &["rev-parse", "HEAD"]),
        "has_uncommitted_changes": output("git", &["status", "--porcelain"]).map(|changes| !changes.is_empty()),
        "rustc": output("rustc", &["--version"]),
        "rustflags": option_env!("RUSTFLAGS"),
        "path": echod,
        "size_bytes": fs::metadata(echod).map(|file| file.len()).ok(),
        "is_optimized": !cfg!(debug_assertions),
    })
}

fn trimmed(path: &str) -> Option<String> {
    Some(read_or_empty(path).trim().to_owned()).filter(|text| !text.is_empty())
}
