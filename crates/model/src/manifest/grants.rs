//! What a function may touch outside its sandbox: nothing, unless it is listed here.

use std::fmt;
use std::net::Ipv6Addr;

use serde::Serialize;

use super::limits;

/// The `[grants]` of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Grants {
    /// Whether a program may use the network.
    pub network: bool,
    /// Hosts that the function may call over HTTP.
    pub http: Vec<HostGrant>,
    /// Directories that the function may open.
    pub files: Vec<FileGrant>,
}

/// A host that a function may call, with one port or all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostGrant {
    /// Lower case; an IPv6 address without brackets.
    host: String,
    port: Option<u16>,
}

impl HostGrant {
    /// Reads `host`, `host:port`, `[ipv6]` or `[ipv6]:port`. The error says what was found.
    pub fn new(text: &str) -> Result<Self, String> {
        let (host, port) = split_authority(text)?;
        let host = match host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            Some(inner) => inner
                .parse::<Ipv6Addr>()
                .map_err(|_| format!("{inner:?} is not an IPv6 address"))?
                .to_string(),
            None => {
                check_host(host)?;
                host.to_ascii_lowercase()
            }
        };
        Ok(Self { host, port })
    }

    /// Whether a call to this host (as in a URI, with or without brackets) and port is covered.
    pub fn allows(&self, host: &str, port: u16) -> bool {
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let same_host = match bare.unwrap_or(host).parse::<Ipv6Addr>() {
            Ok(address) => self.host == address.to_string(),
            Err(_) => self.host.eq_ignore_ascii_case(host),
        };
        same_host && self.port.is_none_or(|granted| granted == port)
    }
}

fn split_authority(text: &str) -> Result<(&str, Option<u16>), String> {
    let after_address = text.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = text[after_address..].rfind(':') else {
        return Ok((text, None));
    };
    let (host, port) = text.split_at(after_address + colon);
    if host.contains(':') && after_address == 0 {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(format!(
                "the IPv6 address {text} has no brackets; write \"[{text}]\""
            ));
        }
        return Err(format!("{:?} is not a host", clipped(text)));
    }
    if port.starts_with(":/") {
        return Err(format!("{:?} has a scheme", clipped(text)));
    }
    match port[1..].parse::<u16>() {
        Ok(port) if port > 0 => Ok((host, Some(port))),
        _ => Err(format!(
            "{:?} has no port from 1 to 65535 after the colon",
            clipped(text)
        )),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let shown = clipped(host);
    if host.is_empty() || host.len() > limits::MAX_HOST_BYTES {
        return Err(format!(
            "the host has {} bytes instead of 1 to {}",
            host.len(),
            limits::MAX_HOST_BYTES
        ));
    }
    if host.contains('*') {
        return Err(format!("{shown:?} has a wildcard"));
    }
    if host.contains('/') {
        return Err(format!("{shown:?} has a path"));
    }
    let good_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty()
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.split('.').all(good_label) {
        return Err(format!("{shown:?} is not a host"));
    }
    Ok(())
}

fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for HostGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        match self.port {
            None => Ok(()),
            Some(port) => write!(f, ":{port}"),
        }
    }
}

impl Serialize for HostGrant {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A directory of the node that the function may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileGrant {
    /// Absolute path on the node.
    pub host: String,
    /// Absolute path inside the function.
    pub guest: String,
    /// Whether it may be written.
    pub mode: FileMode,
}

/// Whether a granted directory may be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum FileMode {
    /// `ro`: files can be read.
    #[default]
    #[serde(rename = "ro")]
    ReadOnly,
    /// `rw`: files can be read, written, made and removed.
    #[serde(rename = "rw")]
    ReadWrite,
}

impl FileMode {
    /// The word in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
        }
    }
}

/// Refuses paths that are relative or that wander. The error follows the path's label.
pub(super) fn check_absolute(path: &str) -> Result<(), String> {
    let shown = clipped(path);
    if !path.starts_with('/') {
        return Err(format!("is {shown:?}, which is not absolute"));
    }
    if path.len() > limits::MAX_PATH_BYTES {
        return Err(format!(
            "has {} bytes, more than {}",
            path.len(),
            limits::MAX_PATH_BYTES
        ));
    }
    if path.chars().any(char::is_control) {
        return Err("has control characters".to_owned());
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        return Err(format!("is {shown:?}, which has . or .. in it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_its_host_and_port_only() {
        let any_port = HostGrant::new("API.example.com").unwrap();
        assert_eq!(any_port.to_string(), "api.example.com");
        assert!(any_port.allows("api.EXAMPLE.com", 443));
        assert!(!any_port.allows("example.com", 443));
        assert!(!any_port.allows("x.api.example.com", 443));

        let one_port = HostGrant::new("localhost:8080").unwrap();
        assert!(one_port.allows("localhost", 8080));
        assert!(!one_port.allows("localhost", 80));

        let address = HostGrant::new("[0:0::1]:80").unwrap();
        assert_eq!(address.to_string(), "[::1]:80");
        assert!(address.allows("[::1]", 80) && address.allows("::1", 80));
    }

    #[test]
    fn hosts_with_anything_else_are_refused() {
        for (bad, why) in [
            ("", "0 bytes"),
            ("https://example.com", "scheme"),
            ("example.com/path", "path"),
            ("*.example.com", "wildcard"),
            ("example.com:0", "port"),
            ("example.com:http", "port"),
            ("::1", "brackets"),
            ("[::x]", "IPv6"),
            ("a..b", "not a host"),
            ("user@example.com", "not a host"),
            ("ä.example", "not a host"),
        ] {
            let fault = HostGrant::new(bad).unwrap_err();
            assert!(fault.contains(why), "{bad}: {fault}");
        }
    }

    #[test]
    fn paths_are_absolute_and_straight() {
        assert_eq!(check_absolute("/srv/maps"), Ok(()));
        for bad in ["", "srv", "/srv/../etc", "/./a", "/a\0b"] {
            assert!(check_absolute(bad).is_err(), "{bad}");
        }
    }
}
