//! What the broker reads from a request's headers.

use std::sync::Arc;

use fulmar_model::{Code, Problem};
use http::header::HeaderMap;

/// Longest idempotency key in characters.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// The client's idempotency key, if it sent one.
///
/// # Errors
/// When it was sent twice, or is not 1 to 255 visible ASCII characters.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    let bad = |detail: &str| Err(Problem::new(Code::IdempotencyKeyInvalid, detail));
    if keys.next().is_some() {
        return bad("the Idempotency-Key header was sent twice");
    }
    match key.to_str() {
        Ok(key)
            if (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Some(key.into()))
        }
        _ => bad("the Idempotency-Key header has to be 1 to 255 visible ASCII characters"),
    }
}

/// Whether the client wants to come back for the result (RFC 7240).
pub fn prefers_async(headers: &HeaderMap) -> bool {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .any(|preference| preference.trim().eq_ignore_ascii_case("respond-async"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(name: &'static str, values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn keys_are_visible_ascii_and_come_once() {
        let key = |values: &[&[u8]]| idempotency_key(&headers("idempotency-key", values));
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&[b"a-1"]), Ok(Some("a-1".into())));
        assert!(key(&[&[b'x'; 255]]).is_ok());
        for bad in [&b""[..], b"a b", &[b'x'; 256], b"\xc3\xa9"] {
            assert!(key(&[bad]).is_err(), "{bad:?}");
        }
        assert!(key(&[b"a", b"a"]).is_err());
    }

    #[test]
    fn preferences_are_found_among_others() {
        let asks = |values: &[&[u8]]| prefers_async(&headers("prefer", values));
        assert!(asks(&[b"respond-async"]));
        assert!(asks(&[b"handling=lenient", b"wait=10, Respond-Async"]));
        assert!(!asks(&[b"respond-asynchronously"]));
        assert!(!asks(&[b"\xff"]));
    }
}
