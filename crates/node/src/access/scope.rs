//! What a request needs, and whether a token covers it.

use axum::extract::Query;
use fulmar_model::id::{DEFAULT_NAMESPACE, split_namespace};
use fulmar_state::record::TokenRecord;
use http::{Method, Request, Uri};
use serde::Deserialize;

use crate::target::{self, Target};

/// What a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// Nothing: whether the node lives.
    Nothing,
    /// Any token.
    Any,
    Invoke(Over),
    Deploy(Over),
    /// Everything else.
    Admin(Over),
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Over {
    /// Something of which a function is not known yet: whoever answers looks.
    Unknown,
    /// A function, or what belongs to it.
    Function(String),
    /// What the functions of a namespace share.
    Namespace(String),
    /// The node, or the cluster.
    All,
}

impl Scope {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if path.starts_with(target::PREFIX) {
            // A path that makes no sense is refused later, with its own code.
            let function = Target::parse(path).map(|target| target.function.into_owned());
            return Self::Invoke(Over::Function(function.unwrap_or_default()));
        }
        match path {
            "/healthz" | "/readyz" => return Self::Nothing,
            "/metrics" => return Self::Any,
            "/admin/functions" if is_read => return Self::Any,
            _ => {}
        }
        if path.starts_with("/invocations/") && is_read {
            return Self::Invoke(Over::Unknown);
        }
        let Some(rest) = path.strip_prefix("/admin/") else {
            return Self::Admin(Over::All);
        };
        // As the router reads it: what is encoded differently is the same function.
        let segments: Option<Vec<_>> = rest.split('/').map(target::decode_segment).collect();
        let segments = segments.unwrap_or_default();
        let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        match segments[..] {
            ["sessions"] | ["decisions"] => Self::Admin(match asked_for(request.uri()) {
                Some(function) => Over::Function(function),
                None => Over::All,
            }),
            ["artifacts", _] => Self::Deploy(Over::Unknown),
            ["functions", function] => Self::Deploy(Over::Function(function.to_owned())),
            ["functions" | "sessions" | "logs", function, ..]
            | ["state", "session", function, ..] => {
                Self::Admin(Over::Function(function.to_owned()))
            }
            ["state", "namespace", namespace, ..] => {
                Self::Admin(Over::Namespace(namespace.to_owned()))
            }
            ["state", "shared", _, ..] => {
                Self::Admin(Over::Namespace(DEFAULT_NAMESPACE.to_owned()))
            }
            ["namespaces", namespace] if is_read => {
                Self::Admin(Over::Namespace(namespace.to_owned()))
            }
            _ => Self::Admin(Over::All),
        }
    }

    /// # Errors
    /// What the token lacks.
    pub(super) fn is_within(&self, token: &TokenRecord) -> Result<(), String> {
        let lacks = |scope: &str| Err(format!("the token lacks the scope {scope}"));
        let over = match self {
            Self::Nothing | Self::Any => return Ok(()),
            Self::Invoke(_) if !token.may_invoke => return lacks("invoke"),
            Self::Deploy(_) if !token.may_deploy => return lacks("deploy"),
            Self::Admin(_) if !token.may_admin => return lacks("admin"),
            Self::Invoke(over) | Self::Deploy(over) | Self::Admin(over) => over,
        };
        let patterns = &token.functions;
        let (is_covered, what) = match over {
            Over::Unknown => return Ok(()),
            Over::Function(function) => (
                patterns.iter().any(|pattern| matches(pattern, function)),
                function.clone(),
            ),
            Over::Namespace(namespace) => (
                patterns
                    .iter()
                    .any(|pattern| covers_all_of(pattern, namespace)),
                format!("all of the namespace {namespace}"),
            ),
            Over::All => (
                patterns.iter().any(|pattern| pattern == ALL),
                "the whole node".into(),
            ),
        };
        match is_covered || patterns.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "the token is for {} only, not for {what}",
                patterns.join(", ")
            )),
        }
    }
}

/// The one function that a list is asked for.
fn asked_for(uri: &Uri) -> Option<String> {
    #[derive(Deserialize)]
    struct About {
        function: String,
    }
    let Query(about) = Query::<About>::try_from_uri(uri).ok()?;
    Some(about.function)
}

/// The pattern that covers everything.
const ALL: &str = "*";

/// Whether a pattern covers a function: its name, or the beginning of it before a `*` at the end, of its namespace.
pub(super) fn matches(pattern: &str, function: &str) -> bool {
    if pattern == ALL {
        return true;
    }
    let (namespace, pattern) = split_namespace(pattern);
    let (of, name) = split_namespace(function);
    namespace == of
        && match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => pattern == name,
        }
}

/// Whether a pattern covers all functions of a namespace.
fn covers_all_of(pattern: &str, namespace: &str) -> bool {
    pattern == ALL || pattern.strip_suffix(".*") == Some(namespace)
}

/// Whether a text is a pattern: a function's name, or the beginning of one and a `*`.
pub(crate) fn is_pattern(text: &str) -> bool {
    if text == ALL {
        return true;
    }
    let (namespace, name) = match text.split_once('.') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let is_label = |text: &str| {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !text.is_empty() && text.chars().all(is_allowed)
    };
    let is_name = match name.strip_suffix('*') {
        Some("") => namespace.is_some(),
        Some(beginning) => is_label(beginning),
        None => is_label(name),
    };
    is_name && namespace.is_none_or(is_label)
}

/// Whether its bearer may make other tokens.
pub(super) fn is_whole_admin(token: &TokenRecord) -> bool {
    token.may_admin
        && (token.functions.is_empty() || token.functions.iter().any(|text| text == ALL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(method: &str, path: &str) -> Scope {
        Scope::of(
            &Request::builder()
                .method(method)
                .uri(path)
                .body(())
                .unwrap(),
        )
    }

    fn token(invoke: bool, deploy: bool, admin: bool, functions: &[&str]) -> TokenRecord {
        TokenRecord {
            secret_sha256: [0; 32],
            label: String::new(),
            may_invoke: invoke,
            may_deploy: deploy,
            may_admin: admin,
            functions: functions.iter().map(|text| (*text).to_owned()).collect(),
            created_unix_ms: 0,
        }
    }

    #[test]
    fn every_path_has_its_scope() {
        let function = |name: &str| Over::Function(name.into());
        let invoke = Scope::Invoke(function("track"));
        assert_eq!(scope("POST", "/fn/track/line-3"), invoke);
        assert_eq!(
            scope("POST", "/fn/tr%61ck"),
            invoke,
            "as the broker reads it"
        );
        assert_eq!(
            scope("GET", "/invocations/1-2"),
            Scope::Invoke(Over::Unknown)
        );
        let deploy = Scope::Deploy(function("shop.a"));
        assert_eq!(scope("PUT", "/admin/functions/shop.a"), deploy);
        assert_eq!(
            scope("PUT", "/admin/functions/shop%2Ea"),
            deploy,
            "as the router reads it"
        );
        assert_eq!(
            scope("PUT", "/admin/artifacts/00"),
            Scope::Deploy(Over::Unknown)
        );
        assert_eq!(scope("GET", "/healthz"), Scope::Nothing);
        assert_eq!(scope("GET", "/metrics"), Scope::Any);
        assert_eq!(scope("GET", "/admin/functions"), Scope::Any);
        for path in [
            "/admin/sessions/a/b",
            "/admin/functions/a/kept",
            "/admin/logs/%61",
            "/admin/state/session/a/b/key/c",
            "/admin/sessions?limit=1&function=a",
            "/admin/decisions?function=%61&session=b",
        ] {
            assert_eq!(scope("GET", path), Scope::Admin(function("a")), "{path}");
        }
        let namespace = |name: &str| Scope::Admin(Over::Namespace(name.into()));
        assert_eq!(
            scope("PUT", "/admin/state/shared/b/key/c"),
            namespace("default")
        );
        assert_eq!(
            scope("GET", "/admin/state/namespace/shop/b/keys"),
            namespace("shop")
        );
        assert_eq!(scope("GET", "/admin/namespaces/shop"), namespace("shop"));
        for (method, path) in [
            ("GET", "/admin/tokens"),
            ("GET", "/admin/node"),
            ("GET", "/admin/sessions"),
            ("GET", "/admin/sessions?function=a&function=b"),
            ("GET", "/admin/state/shared"),
            ("GET", "/admin/state-export"),
            ("PUT", "/admin/namespaces/shop"),
            ("GET", "/admin/sessions/%ff/b"),
            ("GET", "/x"),
            ("DELETE", "/invocations/1-2"),
        ] {
            assert_eq!(scope(method, path), Scope::Admin(Over::All), "{path}");
        }
    }

    #[test]
    fn scopes_and_patterns_are_both_needed() {
        let function = |name: &str| Over::Function(name.into());
        let invoke = |name: &str| Scope::Invoke(function(name));
        let camera = token(true, false, false, &["track-*", "count"]);
        assert!(invoke("track-a").is_within(&camera).is_ok());
        assert!(invoke("count").is_within(&camera).is_ok());
        let text = invoke("counter").is_within(&camera).unwrap_err();
        assert_eq!(
            text,
            "the token is for track-*, count only, not for counter"
        );
        assert!(Scope::Deploy(function("count")).is_within(&camera).is_err());
        assert!(Scope::Admin(Over::All).is_within(&camera).is_err());
        assert!(Scope::Any.is_within(&camera).is_ok());
        let everything = token(true, false, false, &[]);
        assert!(invoke("shop.any").is_within(&everything).is_ok());
        let nothing = token(false, true, true, &[]);
        assert!(invoke("any").is_within(&nothing).is_err());
    }

    #[test]
    fn a_namespace_is_its_own() {
        let shop = token(true, true, true, &["shop.*"]);
        let may = |scope: Scope| scope.is_within(&shop).is_ok();
        let function = |name: &str| Over::Function(name.into());
        let namespace = |name: &str| Over::Namespace(name.into());
        assert!(may(Scope::Invoke(function("shop.till"))));
        assert!(may(Scope::Admin(function("shop.till"))));
        assert!(may(Scope::Admin(namespace("shop"))));
        for other in ["shop", "shopping", "fleet.till", "shop-2.till", ""] {
            assert!(!may(Scope::Invoke(function(other))), "{other}");
        }
        assert!(!may(Scope::Admin(namespace("default"))));
        assert!(!may(Scope::Admin(Over::All)));
        assert!(matches("sho*", "shop") && !matches("sho*", "shop.till"));
        assert!(matches("default.*", "till") && !matches("default.*", "shop.till"));
        assert!(matches("*", "shop.till"));
        let part = token(false, false, true, &["shop.t*"]);
        assert!(Scope::Admin(namespace("shop")).is_within(&part).is_err());
    }

    #[test]
    fn patterns_are_names_or_their_beginnings() {
        for good in ["*", "a", "a-*", "shop.*", "shop.a", "shop.a-*", "default.*"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in [
            "", "**", "*a", "a*b", ".*", "*.a", "shop.", "a,b", "A", "a.b.c", "s*.a",
        ] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
