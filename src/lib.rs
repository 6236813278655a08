// The pages under `docs` are read in two places. On a code host, their links lead to files, by the definitions at the end of
// each page. In the documentation the first definition of a link counts: those of `links!`, which lead to items.
#![doc = links!()]
#![doc = include_str!("docs/pictures.md")]
#![doc = include_str!("docs/tour.md")]
#![forbid(unsafe_code)]

/// Where the links of the pages lead in the documentation.
macro_rules! links {
    () => {
        "[tutorial]: crate::docs::tutorial\n\
         [chinese]: crate::docs::tutorial_zh\n\
         [traps]: crate::docs::traps\n\
         [acceptor]: crate::event_loop::acceptor\n\
         [connection]: crate::event_loop::connection\n\
         [connections]: crate::event_loop::connections\n\
         [explain]: crate::explain\n\
         [listener]: crate::listen::listener\n\
         [socket]: crate::listen::socket\n\
         [pending]: crate::event_loop::pending\n\
         [readiness]: crate::event_loop::readiness\n\
         [server]: crate::event_loop::server\n\
         [state]: crate::event_loop::state\n\
         [transport]: crate::event_loop::transport\n\n"
    };
}
use links;

pub mod daemon;
pub mod docs;
pub mod event_loop;
pub mod explain;
pub mod listen;
pub mod metrics;
