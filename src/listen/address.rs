//! Parsing of listening addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on, as the user typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `9999`: all interfaces, IPv6 and IPv4 on one socket.
    Port(u16),
    /// `127.0.0.1:9999`, `[::1]:9999`. An IPv6 address accepts IPv6 only.
    Ip(SocketAddr),
    /// `localhost:9999`: every address that the name resolves to.
    Host {
        /// A name, or an IPv6 address with a zone (`fe80::1%eth0`).
        host: String,
        /// The port; 0 lets the kernel choose a free one.
        port: u16,
    },
    /// `unix:/run/echo.sock`. A file whose name begins with `@` needs a directory before it: `unix:./@name`.
    Unix(PathBuf),
    /// `unix:@name`: a Linux abstract socket, which has a name but no file (unix(7)).
    Abstract(String),
}

impl Address {
    /// Parses an address. The error is a message for the user; it does not repeat the whole address.
    pub fn parse(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return parse_unix(path);
        }
        if let Ok(address) = text.parse() {
            return unbindable_reason(address).map_or(Ok(Address::Ip(address)), |reason| Err(reason.into()));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return parse_port(text).map(Address::Port);
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            // `::1:80` is a valid IPv6 address as a whole, so the port is ambiguous.
            return Err("an IPv6 address needs brackets and a port, e.g. [::1]:9999".into());
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!("remove the {}:// prefix", printable(scheme)));
        }
        let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
            return Err(match text {
                "" => "expected PORT, IP:PORT, [IPv6]:PORT, HOST:PORT or unix:PATH".into(),
                _ => format!("missing port, e.g. {}:9999", printable(text)),
            });
        };
        let host = parse_host(host)?;
        Ok(Address::Host { host, port: parse_port(port)? })
    }
}

fn parse_unix(text: &str) -> Result<Address, String> {
    match text.strip_prefix('@') {
        _ if text.contains('\0') => Err("the name of a Unix socket cannot contain a NUL byte".into()),
        Some(name) => parse_abstract_name(name),
        None => parse_path(text),
    }
}

#[cfg(target_os = "linux")]
fn parse_abstract_name(name: &str) -> Result<Address, String> {
    use std::os::linux::net::SocketAddrExt;
    if name.is_empty() {
        return Err("missing name after the @, e.g. unix:@echo".into());
    }
    match std::os::unix::net::SocketAddr::from_abstract_name(name) {
        Ok(_) => Ok(Address::Abstract(name.into())),
        Err(_) => Err(format!("the name is too long for a Unix socket ({} bytes)", name.len())),
    }
}

#[cfg(not(target_os = "linux"))]
fn parse_abstract_name(name: &str) -> Result<Address, String> {
    Err(format!("only Linux supports abstract sockets; use ./@{name} for a file of that name"))
}

fn parse_path(path: &str) -> Result<Address, String> {
    if path.is_empty() {
        return Err("missing path, e.g. unix:/run/echo.sock".into());
    }
    // The standard library knows the limit, which is 108 bytes on Linux and 104 on BSD.
    match std::os::unix::net::SocketAddr::from_pathname(path) {
        Ok(_) => Ok(Address::Unix(path.into())),
        Err(_) => Err(format!("the path is too long for a Unix socket ({} bytes)", path.len())),
    }
}

fn parse_port(port: &str) -> Result<u16, String> {
    if port.is_empty() {
        return Err("missing port after the colon".into());
    }
    // `u16::from_str` would accept "+80".
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("invalid port '{}'", printable(port)));
    }
    port.parse().map_err(|_| format!("port {port} is greater than 65535"))
}

fn parse_host(host: &str) -> Result<String, String> {
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (address, interface) = v6.split_once('%').unwrap_or((v6, ""));
        let has_zone = !interface.is_empty() && interface.chars().all(|c| c.is_ascii_graphic());
        return match address.parse::<Ipv6Addr>() {
            Ok(ip) if has_zone || v6 == address => {
                // getaddrinfo(3) resolves the zone to the number of an interface; any number but 0 will do here.
                let address = SocketAddrV6::new(ip, 0, 0, u32::from(has_zone));
                unbindable_reason(address.into()).map_or(Ok(v6.into()), |reason| Err(reason.into()))
            }
            _ => Err("the part in brackets is not a valid IPv6 address".into()),
        };
    }
    match host {
        "" => Err("missing host before the colon; use just the port to listen on all interfaces".into()),
        "*" => Err("use just the port to listen on all interfaces".into()),
        _ if host.contains(':') => Err("more than one colon; an IPv6 address needs brackets, e.g. [::1]:9999".into()),
        _ if looks_like_ipv4(host) && host.parse::<Ipv4Addr>().is_err() => Err(format!("invalid IPv4 address {host}")),
        _ if host.chars().all(|c| c.is_alphanumeric() || "-._".contains(c)) => Ok(host.into()),
        _ => Err(format!("invalid host name '{}'", printable(host))),
    }
}

/// Returns why no TCP socket of ours can listen on this address, whatever the host. The system would only report EINVAL.
pub(super) fn unbindable_reason(address: SocketAddr) -> Option<&'static str> {
    match (address.ip(), address) {
        (ip, _) if ip.is_multicast() => Some("TCP cannot listen on a multicast address"),
        (IpAddr::V6(ip), _) if ip.to_ipv4_mapped().is_some() => {
            Some("this is an IPv4-mapped address; use the IPv4 address, e.g. 127.0.0.1:9999")
        }
        (IpAddr::V6(ip), SocketAddr::V6(v6)) if ip.is_unicast_link_local() && v6.scope_id() == 0 => {
            Some("a link-local address needs a zone, e.g. [fe80::1%eth0]:9999")
        }
        _ => None,
    }
}

/// Returns whether every part of `host` is a number, possibly in C notation. getaddrinfo(3) passes such names to inet_aton(3),
/// which accepts fewer than four parts, and octal and hexadecimal ones: 10.1 is 10.0.0.1, and 0x7f.1 is 127.0.0.1. That is
/// hardly ever what the user meant, and no host can be reached under such a name.
fn looks_like_ipv4(host: &str) -> bool {
    host.split('.').all(|part| match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => part.bytes().all(|byte| byte.is_ascii_digit()),
    })
}

/// Returns `text` with control characters escaped, so that a message that quotes it stays on one line.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        Address::parse(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Port(port) => port.fmt(f),
            Address::Ip(address) => address.fmt(f),
            Address::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Host { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::os::unix::net::SocketAddr as UnixAddr;

    use super::*;
    use crate::listen::test_support::address;

    #[test]
    fn addresses_parse_and_display_as_typed() {
        let host = |host: &str, port| Address::Host { host: host.into(), port };
        for (text, expected) in [
            ("9999", Address::Port(9999)),
            ("0", Address::Port(0)),
            ("127.0.0.1:0", Address::Ip(([127, 0, 0, 1], 0).into())),
            ("[::1]:80", Address::Ip((Ipv6Addr::LOCALHOST, 80).into())),
            ("localhost:80", host("localhost", 80)),
            ("echo-1.example_a.:7", host("echo-1.example_a.", 7)),
            ("bücher.example:7", host("bücher.example", 7)),
            ("0x7f.example:7", host("0x7f.example", 7)),
            ("face:7", host("face", 7)),
            ("[fe80::1%eth0]:7", host("fe80::1%eth0", 7)),
            ("[fe80::1%2]:7", Address::Ip(SocketAddrV6::new("fe80::1".parse().expect("address"), 7, 0, 2).into())),
            ("unix:/run/x", Address::Unix("/run/x".into())),
            ("unix:relative:1", Address::Unix("relative:1".into())),
            ("unix:///run/x", Address::Unix("///run/x".into())),
            ("unix:./@x", Address::Unix("./@x".into())),
            #[cfg(target_os = "linux")]
            ("unix:@x", Address::Abstract("x".into())),
            #[cfg(target_os = "linux")]
            ("unix:@@/x:1", Address::Abstract("@/x:1".into())),
        ] {
            assert_eq!(address(text), expected, "{text}");
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn invalid_address_is_rejected_with_its_reason() {
        for (text, expected) in [
            ("", "expected PORT, IP:PORT, [IPv6]:PORT, HOST:PORT or unix:PATH"),
            ("localhost", "missing port, e.g. localhost:9999"),
            ("127.0.0.1", "missing port, e.g. 127.0.0.1:9999"),
            ("[::1]", "missing port, e.g. [::1]:9999"),
            ("localhost:", "missing port after the colon"),
            ("70000", "port 70000 is greater than 65535"),
            ("99999999999999999999", "port 99999999999999999999 is greater than 65535"),
            ("127.0.0.1:70000", "port 70000 is greater than 65535"),
            ("localhost:99999", "port 99999 is greater than 65535"),
            ("[::1]:99999", "port 99999 is greater than 65535"),
            ("localhost:http", "invalid port 'http'"),
            ("localhost:+80", "invalid port '+80'"),
            ("localhost:-1", "invalid port '-1'"),
            ("::1", "an IPv6 address needs brackets and a port, e.g. [::1]:9999"),
            ("::1:80", "an IPv6 address needs brackets and a port, e.g. [::1]:9999"),
            ("1:2:3:4:5:6:7:8:80", "more than one colon; an IPv6 address needs brackets, e.g. [::1]:9999"),
            ("[::g]:80", "the part in brackets is not a valid IPv6 address"),
            ("[127.0.0.1]:80", "the part in brackets is not a valid IPv6 address"),
            ("[fe80::1%]:80", "the part in brackets is not a valid IPv6 address"),
            (":80", "missing host before the colon; use just the port to listen on all interfaces"),
            ("*:80", "use just the port to listen on all interfaces"),
            ("256.0.0.1:80", "invalid IPv4 address 256.0.0.1"),
            ("10.1:80", "invalid IPv4 address 10.1"),
            ("017700000001:80", "invalid IPv4 address 017700000001"),
            ("0177.0.0.1:80", "invalid IPv4 address 0177.0.0.1"),
            ("0x0:80", "invalid IPv4 address 0x0"),
            ("0X7F.1:80", "invalid IPv4 address 0X7F.1"),
            ("127.0.0.0x1.:80", "invalid IPv4 address 127.0.0.0x1."),
            ("[::ffff:127.0.0.1]:80", "this is an IPv4-mapped address; use the IPv4 address, e.g. 127.0.0.1:9999"),
            ("[::ffff:127.0.0.1%lo]:80", "this is an IPv4-mapped address; use the IPv4 address, e.g. 127.0.0.1:9999"),
            ("[fe80::1]:80", "a link-local address needs a zone, e.g. [fe80::1%eth0]:9999"),
            ("[ff02::1%eth0]:80", "TCP cannot listen on a multicast address"),
            ("224.0.0.1:80", "TCP cannot listen on a multicast address"),
            ("a b:80", "invalid host name 'a b'"),
            ("a\nb:80", "invalid host name 'a\\nb'"),
            ("tcp://127.0.0.1:80", "remove the tcp:// prefix"),
            ("unix:", "missing path, e.g. unix:/run/echo.sock"),
            ("unix:a\0b", "the name of a Unix socket cannot contain a NUL byte"),
            #[cfg(target_os = "linux")]
            ("unix:@", "missing name after the @, e.g. unix:@echo"),
            #[cfg(target_os = "linux")]
            ("unix:@a\0b", "the name of a Unix socket cannot contain a NUL byte"),
            #[cfg(not(target_os = "linux"))]
            ("unix:@x", "only Linux supports abstract sockets; use ./@x for a file of that name"),
        ] {
            assert_eq!(Address::parse(text).expect_err(text), expected, "{text:?}");
        }
    }

    #[test]
    fn unix_path_is_limited_to_the_system_maximum() {
        let longest = (1..200).take_while(|&n| UnixAddr::from_pathname("x".repeat(n)).is_ok()).count();
        assert!(longest >= 100, "{longest}");
        assert!(Address::parse(&format!("unix:{}", "x".repeat(longest))).is_ok());
        let message =
            Address::parse(&format!("unix:{}", "x".repeat(longest + 1))).expect_err("path should be too long");
        assert_eq!(message, format!("the path is too long for a Unix socket ({} bytes)", longest + 1));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn abstract_name_is_limited_to_107_bytes() {
        // unix(7): 108 bytes, of which the first is NUL.
        assert!(Address::parse(&format!("unix:@{}", "x".repeat(107))).is_ok());
        let message = Address::parse(&format!("unix:@{}", "x".repeat(108))).expect_err("name should be too long");
        assert_eq!(message, "the name is too long for a Unix socket (108 bytes)");
    }
}
