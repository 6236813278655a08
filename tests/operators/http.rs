//! A peer of the endpoint: one request, one answer, read to the server's FIN.

use std::collections::HashMap;

use crate::support::{Address, Client, Daemon};

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8(bytes.to_vec()).expect("an answer in UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no end of headers in {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}"));
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let status = status.unwrap_or_else(|| panic!("no status line in {text:?}"));
        Answer { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    /// The value of a series on a page of metrics.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        let value = self.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {series} in:\n{}", self.body))
    }
}

/// Where the endpoint listens.
#[track_caller]
pub fn endpoint(daemon: &Daemon) -> &Address {
    let http = daemon.addresses().iter().find(|address| matches!(address, Address::Http(_)));
    http.expect("a daemon with --metrics")
}

/// What the endpoint answers to these bytes, up to its FIN; a reset fails the test.
#[track_caller]
pub fn ask(daemon: &Daemon, request: impl AsRef<[u8]>) -> Answer {
    let client = Client::connect(endpoint(daemon));
    client.send(request.as_ref());
    answer(&client)
}

#[track_caller]
pub fn answer(client: &Client) -> Answer {
    Answer::parse(&client.read_to_end().unwrap_or_else(|error| panic!("FIN expected after the answer: {error}")))
}

#[track_caller]
pub fn get(daemon: &Daemon, path: &str) -> Answer {
    ask(daemon, format!("GET {path} HTTP/1.1\r\nHost: echod\r\n\r\n"))
}

/// The page of metrics.
#[track_caller]
pub fn metrics(daemon: &Daemon) -> Answer {
    let answer = get(daemon, "/metrics");
    assert_eq!(answer.status, 200);
    answer
}
