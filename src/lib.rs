// The pages are read in two places. On a code host, links lead to the files beside them, by the definitions at their end. In
// the documentation, the first definition counts: these, which lead to the sources shown there and hold the pictures.
#![doc = links!("../src/echod/", "tutorial/index.html", "tutorial_zh/index.html", "traps/index.html")]
#![doc = include_str!("tour/pictures.md")]
#![doc = include_str!("tour.md")]
#![forbid(unsafe_code)]

/// Where the pages' links lead in the documentation.
macro_rules! links {
    ($sources:literal, $tutorial:literal, $chinese:literal, $traps:literal) => {
        concat!(
            "[tutorial]: ",
            $tutorial,
            "\n",
            "[chinese]: ",
            $chinese,
            "\n",
            "[traps]: ",
            $traps,
            "\n",
            "[acceptor]: ",
            $sources,
            "acceptor.rs.html\n",
            "[connection]: ",
            $sources,
            "connection.rs.html\n",
            "[connections]: ",
            $sources,
            "connections.rs.html\n",
            "[explain]: ",
            $sources,
            "explain.rs.html\n",
            "[listener]: ",
            $sources,
            "listener.rs.html\n",
            "[pending]: ",
            $sources,
            "pending.rs.html\n",
            "[readiness]: ",
            $sources,
            "readiness.rs.html\n",
            "[server]: ",
            $sources,
            "server.rs.html\n",
            "[state]: ",
            $sources,
            "state.rs.html\n",
            "[transport]: ",
            $sources,
            "transport.rs.html\n\n",
        )
    };
}
use links;

pub mod acceptor;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod deadlines;
pub mod descriptors;
pub mod diagram;
pub mod endpoint;
pub mod explain;
pub mod kernel;
pub mod listener;
pub mod metrics;
pub mod observer;
pub mod operators;
pub mod options;
pub mod output;
pub mod pending;
pub mod protocol;
pub mod readiness;
pub mod server;
pub mod service;
pub mod settings;
pub mod signals;
pub mod state;
pub mod token;
pub mod transport;
#[doc = include_str!("traps.md")]
pub mod traps {}
#[doc = links!("../../src/echod/", "index.html", "../tutorial_zh/index.html", "../traps/index.html")]
#[doc = include_str!("tutorial.md")]
pub mod tutorial {}
#[doc = links!("../../src/echod/", "../tutorial/index.html", "index.html", "../traps/index.html")]
#[doc = include_str!("tutorial.zh.md")]
pub mod tutorial_zh {}
pub mod verdict;
pub mod workbench;
