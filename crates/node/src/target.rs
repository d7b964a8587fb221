//! What an invocation's path means: `/fn/{function}[/{session}[/{sub-path}]]`.
//!
//! Segments are percent-decoded one by one, so that a session may contain a slash. The session `-`
//! stands for none, which lets sessionless functions have sub-paths.

use std::borrow::Cow;

use fulmar_model::{Code, Problem, SessionName, id::MAX_SESSION_NAME_BYTES};

/// Prefix of all invocations.
pub const PREFIX: &str = "/fn/";
/// The segment that stands for no session.
const NO_SESSION: &str = "-";

/// An invocation's path, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The function's name, not yet checked: an unknown name is an unknown function.
    pub function: Cow<'a, str>,
    /// The session, if one is named.
    pub session: Option<Cow<'a, str>>,
    /// The rest, as sent, with its leading slash; `/` if there is none.
    pub rest: &'a str,
}

impl<'a> Target<'a> {
    /// Takes a path apart that starts with [`PREFIX`].
    pub fn parse(path: &'a str) -> Result<Self, Problem> {
        let path = path.strip_prefix(PREFIX).unwrap_or(path);
        let (function, rest) = path.split_once('/').unwrap_or((path, ""));
        let function = decode_segment(function).ok_or_else(|| {
            Problem::new(
                Code::BadRequest,
                "the function in the path is not percent-encoded UTF-8",
            )
        })?;
        let (session, rest) = match rest.find('/') {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "/"),
        };
        let session = match session {
            "" if rest == "/" => None,
            NO_SESSION => None,
            session => Some(decode_session(session)?),
        };
        Ok(Self {
            function,
            session,
            rest,
        })
    }
}

fn decode_session(segment: &str) -> Result<Cow<'_, str>, Problem> {
    // Three characters for a byte at most: longer than that is too long however it decodes.
    if segment.len() > 3 * MAX_SESSION_NAME_BYTES {
        return Err(Problem::new(
            Code::SessionNameInvalid,
            format!(
                "the session name is {} characters long; at most {MAX_SESSION_NAME_BYTES} bytes are allowed",
                segment.len()
            ),
        ));
    }
    let session = decode_segment(segment).ok_or_else(|| {
        Problem::new(
            Code::SessionNameInvalid,
            "the session name is not percent-encoded UTF-8",
        )
    })?;
    SessionName::check(&session)
        .map_err(|error| Problem::new(Code::SessionNameInvalid, error.to_string()))?;
    Ok(session)
}

/// Percent-encodes one path segment.
pub fn encode_segment(text: &str) -> String {
    let keep = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || (byte == b'.' && text.len() > 2)
    };
    text.bytes()
        .map(|byte| match keep(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// Percent-decodes one path segment; none if it is not UTF-8 then, or has a broken escape.
pub fn decode_segment(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(path: &str) -> (String, Option<String>, String) {
        let target = Target::parse(path).unwrap();
        (
            target.function.into(),
            target.session.map(Into::into),
            target.rest.into(),
        )
    }

    #[test]
    fn paths_name_function_session_and_rest() {
        let none = |f: &str, rest: &str| (f.to_owned(), None, rest.to_owned());
        assert_eq!(parsed("/fn/counter"), none("counter", "/"));
        assert_eq!(parsed("/fn/counter/"), none("counter", "/"));
        assert_eq!(parsed("/fn/web/-/a/b"), none("web", "/a/b"));
        let some =
            |s: &str, rest: &str| ("tracker".to_owned(), Some(s.to_owned()), rest.to_owned());
        assert_eq!(parsed("/fn/tracker/line-3"), some("line-3", "/"));
        assert_eq!(
            parsed("/fn/tracker/line%203%2Fa/x%20y"),
            some("line 3/a", "/x%20y")
        );
        assert_eq!(parsed("/fn/tracker/%C3%A4/"), some("ä", "/"));
    }

    #[test]
    fn bad_session_names_are_named_as_such() {
        for bad in [
            "/fn/f/%",
            "/fn/f/%2",
            "/fn/f/%zz",
            "/fn/f/%ff",
            "/fn/f/a%00b",
            "/fn/f//x",
            &format!("/fn/f/{}", "x".repeat(10_240)),
        ] {
            assert_eq!(
                Target::parse(bad).unwrap_err().code,
                Code::SessionNameInvalid,
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(path in ".{0,80}") {
            let _ = Target::parse(&path);
            let _ = Target::parse(&format!("/fn/{path}"));
        }
    }
}
