//! The bytes of a request, made from a template without allocating.

use std::fmt::Display;
use std::io::Write;

use anyhow::{Context, bail, ensure};
use std::net::{SocketAddr, ToSocketAddrs};

/// Where the number of the session stands in a path.
const PLACEHOLDER: &str = "{k}";

/// A request with a gap for the session and one for the idempotency key.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// Before, between and after the places of the session's name.
    parts: Vec<Vec<u8>>,
    /// From the end of the path to the place of the idempotency key's header.
    headers: Vec<u8>,
    body: Vec<u8>,
}

impl Template {
    /// A POST to `path` with the placeholder `{k}`, at a server named `host`, with further header
    /// lines NAME: VALUE.
    pub(super) fn new(
        host: &str,
        path: &str,
        header_lines: &[String],
        body: &[u8],
    ) -> anyhow::Result<Self> {
        ensure!(
            path.starts_with('/') && path.bytes().all(|byte| (0x21..0x7f).contains(&byte)),
            "{path:?} is no path of a URL"
        );
        let mut headers = format!(" HTTP/1.1\r\nhost: {host}\r\n");
        for line in header_lines {
            let (name, value) = line
                .split_once(':')
                .with_context(|| format!("{line:?} is not NAME: VALUE"))?;
            ensure!(
                !line.contains(['\r', '\n']),
                "{line:?} is more than one line"
            );
            headers += &format!("{}: {}\r\n", name.trim(), value.trim());
        }
        headers += &format!("content-length: {}\r\n", body.len());
        let mut parts: Vec<Vec<u8>> = path
            .split(PLACEHOLDER)
            .map(|part| part.as_bytes().to_vec())
            .collect();
        parts[0].splice(..0, *b"POST ");
        Ok(Self {
            parts,
            headers: headers.into_bytes(),
            body: body.to_vec(),
        })
    }

    /// Whether requests go to more than one session.
    pub(super) fn has_sessions(&self) -> bool {
        self.parts.len() > 1
    }

    /// The same request with another body.
    pub(super) fn with_body(&self, body: &[u8]) -> Self {
        let text = format!("content-length: {}\r\n", self.body.len());
        let mut other = self.clone();
        other.headers.truncate(self.headers.len() - text.len());
        other
            .headers
            .extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        other.body = body.to_vec();
        other
    }

    /// Writes the request for a session into an empty buffer.
    pub(super) fn write(&self, into: &mut Vec<u8>, session: impl Display, key: Option<Key>) {
        into.clear();
        for (at, part) in self.parts.iter().enumerate() {
            if at > 0 {
                // Writing into memory does not fail.
                let _ = write!(into, "{session}");
            }
            into.extend_from_slice(part);
        }
        into.extend_from_slice(&self.headers);
        if let Some(Key {
            run,
            connection,
            request,
        }) = key
        {
            let _ = write!(into, "idempotency-key: {run:x}-{connection}-{request}\r\n");
        }
        into.extend_from_slice(b"\r\n");
        into.extend_from_slice(&self.body);
    }
}

/// An idempotency key that no other request has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// The run, from the time and the process.
    pub(super) run: u128,
    /// The connection.
    pub(super) connection: usize,
    /// The request on this connection.
    pub(super) request: u64,
}

/// What tells this run from others: the nanoseconds of the clock.
pub(super) fn run_id() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos())
        ^ (u128::from(std::process::id()) << 64)
}

/// Host header and address of an `http://` URL.
pub(super) fn resolve(url: &str) -> anyhow::Result<(String, SocketAddr)> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("{url:?} does not start with http://; a load generator takes nothing else");
    };
    let host = rest.split('/').next().unwrap_or(rest);
    let with_port = if host.rsplit(']').next().unwrap_or(host).contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port
        .to_socket_addrs()
        .with_context(|| format!("cannot find the address of {host}"))?
        .next()
        .with_context(|| format!("{host} has no address"))?;
    Ok((host.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_written_into_its_gaps() {
        let lines = ["Content-Type: application/json".to_owned()];
        let template = Template::new("h:1", "/counter/k{k}/add", &lines, b"1").unwrap();
        let mut bytes = vec![9];
        template.write(&mut bytes, 7, None);
        let expected = "POST /counter/k7/add HTTP/1.1\r\nhost: h:1\r\n\
            Content-Type: application/json\r\ncontent-length: 1\r\n\r\n1";
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);

        let key = Key {
            run: 255,
            connection: 3,
            request: 4,
        };
        template
            .with_body(b"four")
            .write(&mut bytes, "x", Some(key));
        let expected = "POST /counter/kx/add HTTP/1.1\r\nhost: h:1\r\n\
            Content-Type: application/json\r\ncontent-length: 4\r\n\
            idempotency-key: ff-3-4\r\n\r\nfour";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn what_would_break_a_request_is_refused() {
        assert!(Template::new("h", "counter", &[], b"").is_err());
        assert!(Template::new("h", "/a b", &[], b"").is_err());
        assert!(Template::new("h", "/", &["x".to_owned()], b"").is_err());
        assert!(Template::new("h", "/", &["a: b\r\nc: d".to_owned()], b"").is_err());
    }

    #[test]
    fn urls_give_host_and_address() {
        let (host, address) = resolve("http://127.0.0.1:7400/").unwrap();
        assert_eq!((host.as_str(), address.port()), ("127.0.0.1:7400", 7400));
        assert_eq!(resolve("http://127.0.0.1").unwrap().1.port(), 80);
        assert_eq!(resolve("http://[::1]:8080").unwrap().1.port(), 8080);
        assert!(resolve("https://127.0.0.1").is_err());
    }
}
