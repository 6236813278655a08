//! HTTP requests: parsing, routing, and the response.

use std::time::SystemTime;

use crate::metrics::endpoint::Context;

/// The maximum length of a request line with all its headers, in bytes.
pub(super) const MAX_REQUEST_LEN: usize = 8192;

/// The maximum number of headers: more than any scraper sends.
const MAX_HEADERS: usize = 64;

/// The kind of response that a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Metrics,
    Health,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTooLarge,
}

/// Parses a request. Returns its route, and whether only the head of the response is wanted; or `None` if it is incomplete.
/// `is_final` means that no more bytes will arrive or are accepted.
///
/// It is called after every read. A request that arrives byte by byte is parsed as often, which costs a few microseconds each
/// time, about as much as its packet. In return, bytes that are not HTTP are answered at once and not after 5 s.
pub(super) fn parse_request(request: &[u8], is_final: bool) -> Option<(Route, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if !is_final => return None,
        Ok(httparse::Status::Partial) if request.len() < MAX_REQUEST_LEN => return Some((Route::BadRequest, false)),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some((Route::RequestTooLarge, false));
        }
        // Including TLS, and the preface of HTTP/2, which is designed to fail here (RFC 9113, 3.4).
        Err(_) => return Some((Route::BadRequest, false)),
    }
    // RFC 9112, 3.2: HTTP/1.1 without exactly one Host is a bad request. HTTP/1.0 does not have it.
    let hosts = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host")).count();
    if hosts > 1 || parsed.version == Some(1) && hosts == 0 {
        return Some((Route::BadRequest, false));
    }
    let route = match path(parsed.path.unwrap_or("")) {
        "/metrics" => Route::Metrics,
        "/healthz" => Route::Health,
        _ => Route::NotFound,
    };
    Some(match (route, parsed.method) {
        (route, Some("HEAD")) => (route, true),
        (Route::NotFound, _) | (_, Some("GET")) => (route, false),
        _ => (Route::MethodNotAllowed, false),
    })
}

/// Returns the path of a request's target, without the query. A proxy sends the whole URL, which every server must accept
/// (RFC 9112, 3.2.2).
fn path(target: &str) -> &str {
    let from_path = match target.split_once("://") {
        Some(("http" | "https", rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        _ => target,
    };
    from_path.split_once('?').map_or(from_path, |(path, _)| path)
}

/// Returns the complete response. It fits into the kernel's buffers, so a peer that never reads occupies a slot, nothing more.
pub(super) fn response(route: Route, head_only: bool, context: &mut Context<'_>) -> Vec<u8> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let (status, content_type, body) = match route {
        Route::Metrics => ("200 OK", METRICS, context.metrics()),
        Route::Health if context.snapshot.draining => ("503 Service Unavailable", TEXT, "draining\n".into()),
        Route::Health => ("200 OK", TEXT, "ok\n".into()),
        Route::BadRequest => ("400 Bad Request", TEXT, "bad request\n".into()),
        Route::NotFound => ("404 Not Found", TEXT, "not found; try /metrics or /healthz\n".into()),
        Route::MethodNotAllowed => ("405 Method Not Allowed", TEXT, "method not allowed; use GET or HEAD\n".into()),
        Route::RequestTooLarge => (
            "431 Request Header Fields Too Large",
            TEXT,
            "request too large; the limit is 8 KiB and 64 headers\n".into(),
        ),
    };
    let allow = if route == Route::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
    let date = httpdate::fmt_http_date(SystemTime::now());
    let length = body.len();
    let mut response = format!(
        "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         {allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    if !head_only {
        response.push_str(&body);
    }
    response.into_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;
    use std::iter;

    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop, prop_oneof};
    use proptest::sample::{Index, select};

    use super::*;
    use crate::metrics::endpoint::property;
    use crate::metrics::endpoint::tests::with_context;

    /// Returns the route of a complete request.
    fn route_of(request: &[u8]) -> Option<Route> {
        parse_request(request, false).map(|(route, _)| route)
    }

    /// Returns the response to a request, as text.
    fn respond(request: &[u8], draining: bool) -> String {
        let (route, head_only) = parse_request(request, false).expect("complete request");
        let response = with_context(draining, |context| response(route, head_only, context));
        String::from_utf8(response).expect("UTF-8")
    }

    #[test]
    fn requests_are_routed_by_path_and_method() {
        use Route::{BadRequest, Health, MethodNotAllowed, Metrics, NotFound};
        for (request, route) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Metrics),
            ("GET /metrics HTTP/1.0\r\n\r\n", Metrics),
            ("GET /metrics HTTP/1.0\n\n", Metrics),
            ("HEAD /metrics HTTP/1.1\r\nhost: a\r\nAccept: */*\r\n\r\n", Metrics),
            ("GET /metrics?name=a HTTP/1.1\r\nHost: a\r\n\r\n", Metrics),
            ("GET http://a:9100/metrics HTTP/1.1\r\nHost: a:9100\r\n\r\n", Metrics),
            ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Health),
            ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Health),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("POST /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", MethodNotAllowed),
            ("DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", MethodNotAllowed),
            ("GET /metrics HTTP/1.1\r\n\r\n", BadRequest),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", BadRequest),
            ("GET /metrics\r\n", BadRequest),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest),
            ("hello\r\n", BadRequest),
            ("\u{16}\u{3}\u{1}", BadRequest),
            ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", BadRequest),
        ] {
            assert_eq!(route_of(request.as_bytes()), Some(route), "{request:?}");
        }
    }

    #[test]
    fn incomplete_request_is_not_answered_yet() {
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 0..request.len() {
            assert_eq!(route_of(&request[..length]), None, "{length} bytes");
        }
        assert_eq!(parse_request(&request[..20], true), Some((Route::BadRequest, false)), "the peer has sent its FIN");
    }

    #[test]
    fn too_large_request_is_rejected() {
        let mut request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
        request.resize(MAX_REQUEST_LEN, b'x');
        assert_eq!(parse_request(&request, true), Some((Route::RequestTooLarge, false)));
        request.truncate(MAX_REQUEST_LEN - 4);
        request.extend_from_slice(b"\r\n\r\n");
        assert_eq!(parse_request(&request, true), Some((Route::Metrics, false)), "8 KiB are accepted");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(route_of(many.as_bytes()), Some(Route::RequestTooLarge));
    }

    #[test]
    fn head_response_is_the_get_response_without_body() {
        // Not /metrics: the CPU time changes between two requests.
        let get = respond(b"GET /healthz HTTP/1.0\r\n\r\n", false);
        let head = respond(b"HEAD /healthz HTTP/1.0\r\n\r\n", false);
        assert!(head.ends_with("\r\n\r\n") && head.contains("\r\nContent-Length: 3\r\n"));
        let without_date = |text: &str| text.lines().filter(|line| !line.starts_with("Date:")).collect::<String>();
        assert_eq!(without_date(&get), without_date(&head) + "ok");
    }

    #[test]
    fn health_is_503_during_a_drain() {
        let request = b"GET /healthz HTTP/1.0\r\n\r\n";
        assert!(respond(request, false).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(respond(request, true).starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(respond(b"GET /metrics HTTP/1.0\r\n\r\n", true).starts_with("HTTP/1.1 200 OK\r\n"));
    }

    #[test]
    fn response_has_its_length_and_closes_the_connection() {
        for request in
            ["GET /metrics HTTP/1.0\r\n\r\n", "POST /metrics HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "-\r\n"]
        {
            let response = respond(request.as_bytes(), false);
            let (head, body) = response.split_once("\r\n\r\n").expect("head and body");
            assert!(head.contains("\r\nConnection: close"), "{head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            assert_eq!(head.contains("\r\nAllow: GET, HEAD"), head.contains(" 405 "), "{head}");
        }
    }

    #[test]
    fn any_input_gets_one_route_and_keeps_it() {
        use Route::{BadRequest, Health, MethodNotAllowed, Metrics, NotFound};
        let counts: [Cell<u32>; 6] = Default::default();
        property::for_each(20_000, &requests(), |Input(request)| {
            assert!(parse_request(request, true).is_some(), "a final request should have a route");
            // Byte by byte: once a request has a route, later bytes must not change it.
            let mut before = None;
            for end in 0..=request.len() {
                let now = parse_request(&request[..end], false);
                assert!(before.is_none() || now == before, "after {end} bytes it is {now:?}, before it was {before:?}");
                before = now;
            }
            if let Some((route, _)) = before {
                counts[route as usize].update(|count| count + 1);
            }
        });
        for route in [Metrics, Health, BadRequest, NotFound, MethodNotAllowed] {
            let count = counts[route as usize].get();
            assert!(count > 100, "{route:?} occurs only {count} times");
        }
    }

    const METHODS: &[&[u8]] = &[b"GET ", b"GET ", b"HEAD ", b"POST ", b"get "];
    const TARGETS: &[&[u8]] =
        &[b"/metrics", b"/healthz", b"/", b"?", b"a=b", b"http://host", b"http://", b"*", b"\xc3\xa4"];
    const VERSIONS: &[&[u8]] = &[b" HTTP/1.0\r\n", b" HTTP/1.0\n", b" HTTP/1.1\r\nHost: a\r\n", b" HTTP/1.1\r\n"];
    const HEADERS: &[&[u8]] = &[b"Accept: */*\r\n", b"A:\n", b"Content-Length: 5\r\n", b"Host: b\r\n"];
    /// Inserted where it mostly should not be.
    const STRAY: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b": ",
        b" ",
        b"\0",
        b"\xff\xfe",
        b"/metrics",
        b" HTTP/1.1",
        b" HTTP/2.0",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01",
    ];

    pub(in crate::metrics) struct Input(pub(in crate::metrics) Vec<u8>);

    impl std::fmt::Debug for Input {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "b\"{}\"", self.0.escape_ascii())
        }
    }

    /// Generates requests from typical parts, with bytes removed and changed, and sometimes from random bytes.
    pub(in crate::metrics) fn requests() -> impl Strategy<Value = Input> {
        // Which bytes are kept. Shrinking starts here: it removes each byte that the failure does not need.
        let kept = collection::vec(prop::bool::weighted(0.995), 64);
        let change = prop::option::weighted(0.3, (any::<Index>(), any::<u8>()));
        let line = (select(METHODS), collection::vec(select(TARGETS), 1..3), select(VERSIONS));
        let line = line.prop_map(|(method, target, version)| [method, &target.concat(), version].concat());
        let stray = prop::option::weighted(0.2, select(STRAY));
        let end = prop::bool::weighted(0.8).prop_map(|ends| if ends { &b"\r\n"[..] } else { b"" });
        let parts = (prop::option::weighted(0.9, line), collection::vec(select(HEADERS), 0..3), stray, end);
        let assembled = (kept, change, parts).prop_map(|(kept, change, (line, headers, stray, end))| {
            let mut request = [&line.unwrap_or_default(), &headers.concat(), stray.unwrap_or_default(), end].concat();
            if let Some((index, byte)) = change.filter(|_| !request.is_empty()) {
                *index.get_mut(&mut request) = byte;
            }
            let kept = kept.into_iter().chain(iter::repeat(true));
            request.into_iter().zip(kept).filter_map(|(byte, is_kept)| is_kept.then_some(byte)).collect()
        });
        prop_oneof![9 => assembled, 1 => collection::vec(any::<u8>(), 0..40)].prop_map(Input)
    }
}
