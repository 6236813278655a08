//! The style sheet, for light and dark.
//!
//! Colors are plain classes, not CSS variables, which some renderers do not support.

use std::fmt::Write;

/// Returns the style sheet of a picture.
pub fn style_sheet() -> String {
    let (light, dark) = (LIGHT.rules(), DARK.rules());
    format!("{STYLE}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n")
}

/// Shapes and sizes, the same in light and dark.
const STYLE: &str = "\
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif; font-size: 13px; }
.title { font-size: 20px; font-weight: 650; } .subtitle { font-size: 13.5px; } .foot { font-size: 11px; }
.tick { font-size: 12px; font-variant-numeric: tabular-nums; } .panel { font-weight: 600; }
.value { font-size: 12px; font-variant-numeric: tabular-nums; } .ours { font-weight: 700; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
line, polyline { fill: none; } .curve { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.curve.echod { stroke-width: 3.5; } .curve.bare-epoll { stroke-dasharray: 6 4; }
.stem { stroke-width: 4; } .dotted { stroke-width: 1.5; stroke-dasharray: 1.5 4; } .hollow { stroke-width: 2; }
.grid, .axis { stroke-width: 1; } .faint { stroke-opacity: 0.45; } .gap { stroke-width: 2.5; } .whisker { stroke-width: 1.2; }
.kernel { fill-opacity: 0.62; }
";

/// The colors of one scheme.
struct Scheme {
    ground: &'static str,
    ink: &'static str,
    quiet: &'static str,
    grid: &'static str,
    axis: &'static str,
    servers: [(&'static str, &'static str); 10],
}

const LIGHT: Scheme = Scheme {
    ground: "#ffffff",
    ink: "#1b1f24",
    quiet: "#59636e",
    grid: "#e4e8ec",
    axis: "#8b949e",
    servers: [
        ("echod", "#d9480f"),
        ("bare-epoll", "#6b7480"),
        ("tokio", "#1971c2"),
        ("threads", "#2b8a3e"),
        ("tutorial", "#8144c7"),
        ("asyncio", "#9a7400"),
        ("naive-python", "#0b7285"),
        ("other", "#c2255c"),
        ("other-2", "#3b5bdb"),
        ("other-3", "#5c940d"),
    ],
};

const DARK: Scheme = Scheme {
    ground: "#14181d",
    ink: "#e8ecf1",
    quiet: "#9aa5b1",
    grid: "#262d35",
    axis: "#5d6772",
    servers: [
        ("echod", "#ff8a4c"),
        ("bare-epoll", "#a3adb8"),
        ("tokio", "#5aaeff"),
        ("threads", "#5fd07a"),
        ("tutorial", "#bd93f9"),
        ("asyncio", "#e3c04f"),
        ("naive-python", "#48c9d9"),
        ("other", "#ff7eb0"),
        ("other-2", "#91a7ff"),
        ("other-3", "#a9e34b"),
    ],
};

impl Scheme {
    fn rules(&self) -> String {
        let Scheme { ground, ink, quiet, grid, axis, .. } = self;
        let mut rules = format!(
            ".ground {{ fill: {ground}; }} .gap {{ stroke: {ground}; }} .hollow {{ fill: {ground}; }}
.title, .panel, .value, .name {{ fill: {ink}; }} .subtitle, .tick, .foot {{ fill: {quiet}; }}
.grid {{ stroke: {grid}; }} .axis {{ stroke: {axis}; }} .whisker {{ stroke: {ink}; }}
"
        );
        for (server, color) in self.servers {
            writeln!(
                rules,
                ".{server} {{ stroke: {color}; }} .{server}-bar {{ fill: {color}; }} .{server}-text {{ fill: {color}; }}"
            )
            .expect("writing to a String does not fail");
        }
        rules
    }
}

/// Returns the class that colors a server.
pub fn class(server: &str) -> &str {
    match server {
        "remote" => "echod",
        known if LIGHT.servers.iter().any(|(name, _)| *name == known) => known,
        "tokio-64k" => "tokio",
        "threads-64k" => "threads",
        // A color for each of some servers of unknown names, always the same.
        unknown => ["other", "other-2", "other-3"][unknown.bytes().map(usize::from).sum::<usize>() % 3],
    }
}

/// Returns the class that emphasizes echod.
pub fn emphasis(server: &str) -> &'static str {
    if class(server) == "echod" { "ours" } else { "" }
}
