//! HTTP requests: what they ask for, and the answer.

use std::time::SystemTime;

use crate::metrics::endpoint::{MAX_REQUEST_LEN, Page};

/// More headers than any scraper sends.
const MAX_HEADERS: usize = 64;

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Metrics,
    Health,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTooLarge,
}

/// What these bytes ask for, and whether only its head is wanted. `None`: that cannot be told yet; `finished` means that no more
/// bytes will come, or may.
///
/// Called after every read, so a request that comes byte by byte is parsed as often: a few microseconds
/// each, about what its packet costs. And what is no HTTP is answered at once, not after 5 s.
pub(super) fn parse_request(request: &[u8], finished: bool) -> Option<(Route, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if !finished => return None,
        Ok(httparse::Status::Partial) if request.len() < MAX_REQUEST_LEN => return Some((Route::BadRequest, false)),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some((Route::RequestTooLarge, false));
        }
        // Also the preface of HTTP/2, which is made to fail here (RFC 9113, 3.4), and TLS.
        Err(_) => return Some((Route::BadRequest, false)),
    }
    // RFC 9112, 3.2: without exactly one Host, HTTP/1.1 is a bad request. HTTP/1.0 did not know it.
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

/// The path of a request's target, without a query. A proxy sends the whole URL (RFC 9112, 3.2.2: every server must
/// understand it).
fn path(target: &str) -> &str {
    let from_path = match target.split_once("://") {
        Some(("http" | "https", rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        _ => target,
    };
    from_path.split_once('?').map_or(from_path, |(path, _)| path)
}

/// The whole answer. One that fits into the kernel's buffers: a peer that never reads costs us a slot for 5 s, nothing more.
pub(super) fn response(route: Route, head_only: bool, page: &mut Page<'_>) -> Vec<u8> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let (status, content_type, body) = match route {
        Route::Metrics => ("200 OK", METRICS, page.metrics()),
        Route::Health if page.snapshot.draining => ("503 Service Unavailable", TEXT, "draining\n".into()),
        Route::Health => ("200 OK", TEXT, "ok\n".into()),
        Route::BadRequest => ("400 Bad Request", TEXT, "bad request\n".into()),
        Route::NotFound => ("404 Not Found", TEXT, "there are /metrics and /healthz\n".into()),
        Route::MethodNotAllowed => ("405 Method Not Allowed", TEXT, "GET and HEAD are allowed\n".into()),
        Route::RequestTooLarge => ("431 Request Header Fields Too Large", TEXT, "at most 8 KiB\n".into()),
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
    use crate::metrics::endpoint::tests::with_page;

    /// What a request is told when it is all there.
    fn asked(request: &[u8]) -> Option<Route> {
        parse_request(request, false).map(|(route, _)| route)
    }

    /// The answer to a request, as text.
    fn respond(request: &[u8], draining: bool) -> String {
        let (route, head_only) = parse_request(request, false).expect("a whole request");
        let response = with_page(draining, |page| response(route, head_only, page));
        String::from_utf8(response).expect("text")
    }

    #[test]
    fn a_request_is_told_what_it_asks_for() {
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
            assert_eq!(asked(request.as_bytes()), Some(route), "{request:?}");
        }
    }

    #[test]
    fn a_request_is_waited_for_as_long_as_it_can_become_one() {
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 0..request.len() {
            assert_eq!(asked(&request[..length]), None, "{length} bytes");
        }
        assert_eq!(
            parse_request(&request[..20], true),
            Some((Route::BadRequest, false)),
            "the peer has finished within it"
        );
    }

    #[test]
    fn a_request_that_is_too_large_is_told_so() {
        let mut request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
        request.resize(MAX_REQUEST_LEN, b'x');
        assert_eq!(parse_request(&request, true), Some((Route::RequestTooLarge, false)));
        request.truncate(MAX_REQUEST_LEN - 4);
        request.extend_from_slice(b"\r\n\r\n");
        assert_eq!(parse_request(&request, true), Some((Route::Metrics, false)), "8 KiB are not too large");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(asked(many.as_bytes()), Some(Route::RequestTooLarge));
    }

    #[test]
    fn head_is_the_answer_to_get_without_its_body() {
        // The metrics would not do: the process's CPU time moves.
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
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
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
    fn whatever_comes_is_judged_at_the_latest_when_no_more_comes_and_once_judged_not_otherwise() {
        use Route::{BadRequest, Health, MethodNotAllowed, Metrics, NotFound};
        let counts: [Cell<u32>; 6] = Default::default();
        property::for_each(20_000, &requests(), |Input(request)| {
            assert!(parse_request(request, true).is_some(), "never judged");
            // Byte by byte, as it may come: what has been answered is not taken back by what follows.
            let mut before = None;
            for end in 0..=request.len() {
                let now = parse_request(&request[..end], false);
                assert!(before.is_none() || now == before, "after {end} bytes it is {now:?}, and was {before:?}");
                before = now;
            }
            if let Some((route, _)) = before {
                counts[route as usize].update(|count| count + 1);
            }
        });
        for route in [Metrics, Health, BadRequest, NotFound, MethodNotAllowed] {
            let count = counts[route as usize].get();
            assert!(count > 100, "{route:?} comes out {count} times: that proves nothing about it");
        }
    }

    const METHODS: &[&[u8]] = &[b"GET ", b"GET ", b"HEAD ", b"POST ", b"get "];
    const TARGETS: &[&[u8]] =
        &[b"/metrics", b"/healthz", b"/", b"?", b"a=b", b"http://host", b"http://", b"*", b"\xc3\xa4"];
    const VERSIONS: &[&[u8]] = &[b" HTTP/1.0\r\n", b" HTTP/1.0\n", b" HTTP/1.1\r\nHost: a\r\n", b" HTTP/1.1\r\n"];
    const HEADERS: &[&[u8]] = &[b"Accept: */*\r\n", b"A:\n", b"Content-Length: 5\r\n", b"Host: b\r\n"];
    /// What may stand anywhere, and mostly should not.
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

    /// Requests, glued of what stands in them, cut and changed; and now and then any bytes.
    pub(in crate::metrics) fn requests() -> impl Strategy<Value = Input> {
        // Which bytes stay. Cutting down begins here: it takes away each that the failure does not need.
        let kept = collection::vec(prop::bool::weighted(0.995), 64);
        let change = prop::option::weighted(0.3, (any::<Index>(), any::<u8>()));
        let line = (select(METHODS), collection::vec(select(TARGETS), 1..3), select(VERSIONS));
        let line = line.prop_map(|(method, target, version)| [method, &target.concat(), version].concat());
        let stray = prop::option::weighted(0.2, select(STRAY));
        let end = prop::bool::weighted(0.8).prop_map(|ends| if ends { &b"\r\n"[..] } else { b"" });
        let parts = (prop::option::weighted(0.9, line), collection::vec(select(HEADERS), 0..3), stray, end);
        let glued = (kept, change, parts).prop_map(|(kept, change, (line, headers, stray, end))| {
            let mut request = [&line.unwrap_or_default(), &headers.concat(), stray.unwrap_or_default(), end].concat();
            if let Some((place, byte)) = change.filter(|_| !request.is_empty()) {
                *place.get_mut(&mut request) = byte;
            }
            let kept = kept.into_iter().chain(iter::repeat(true));
            request.into_iter().zip(kept).filter_map(|(byte, stays)| stays.then_some(byte)).collect()
        });
        prop_oneof![9 => glued, 1 => collection::vec(any::<u8>(), 0..40)].prop_map(Input)
    }
}
