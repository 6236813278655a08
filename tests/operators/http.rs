//! A client of the endpoint: one request, one response, read to the server's FIN.

use std::collections::HashMap;

use crate::support::{Address, Client, Daemon};

/// A parsed response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Response {
    #[track_caller]
    pub fn parse(bytes: &[u8]) -> Response {
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8 response");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no end of headers in {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("invalid header: {line:?}"));
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let status = status.unwrap_or_else(|| panic!("no status line in {text:?}"));
        Response { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    /// Returns the value of a series on a page of metrics.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        let value = self.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {series} in:\n{}", self.body))
    }
}

/// Returns the address of the endpoint.
#[track_caller]
pub fn endpoint(daemon: &Daemon) -> &Address {
    let http = daemon.addresses().iter().find(|address| matches!(address, Address::Http(_)));
    http.expect("daemon with --metrics")
}

/// Sends these bytes and returns the response, up to the FIN. A reset fails the test.
#[track_caller]
pub fn send_request(daemon: &Daemon, request: impl AsRef<[u8]>) -> Response {
    let client = Client::connect(endpoint(daemon));
    client.send(request.as_ref());
    receive(&client)
}

#[track_caller]
pub fn receive(client: &Client) -> Response {
    Response::parse(&client.read_to_end().unwrap_or_else(|error| panic!("expected a FIN after the response: {error}")))
}

#[track_caller]
pub fn get(daemon: &Daemon, path: &str) -> Response {
    send_request(daemon, format!("GET {path} HTTP/1.1\r\nHost: echod\r\n\r\n"))
}

/// Returns the page of metrics.
#[track_caller]
pub fn metrics(daemon: &Daemon) -> Response {
    let response = get(daemon, "/metrics");
    assert_eq!(response.status, 200);
    response
}
