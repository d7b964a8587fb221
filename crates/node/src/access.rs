//! Who may do what: bearer tokens with scopes.
//!
//! As long as there is no token everybody may do everything, as on a machine of one's own. From the
//! first token on every request needs one. A token is `fulmar_ID_SECRET`; stored is a SHA-256 of the
//! secret, which is 160 random bits, so that no slower hash is needed. A token for some functions only lets its bearer see
//! nothing of others: what a request's path does not tell is left to whoever answers it ([`may_see`]).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::extract::Query;
use bytes::Bytes;
use fulmar_cluster::Cluster;
use fulmar_cluster::registry::Entry;
use fulmar_model::id::{DEFAULT_NAMESPACE, split_namespace};
use fulmar_model::{Code, Problem};
use fulmar_state::record::{Record as _, TokenRecord};
use fulmar_state::{Bookkeeping, Store, Table};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::core::Core;
use crate::target::{self, Target};
use crate::{clock, deploy};

/// Prefix of the records in the system table, and in the registry.
pub(crate) const KEY_PREFIX: &str = "token/";
/// First part of every token, so that scanners for leaked secrets find them.
const TOKEN_PREFIX: &str = "fulmar_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 20;
/// Refused tokens that one address may send at once, and how many it may send again in a second.
const FAILURES: f64 = 20.0;
const FAILURES_PER_SECOND: f64 = 0.5;
/// Addresses remembered; when there are more, those that have not failed lately are forgotten.
const MAX_ADDRESSES: usize = 10_000;

/// Names the functions that the bearer of a request's token may see; only nodes say so. Without it, all.
pub(crate) const FUNCTIONS: HeaderName = HeaderName::from_static("fulmar-functions");

/// What a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
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
enum Over {
    /// Something of which a function is not known yet: whoever answers looks.
    Some,
    /// A function, or what belongs to it.
    Function(String),
    /// What the functions of a namespace share.
    Namespace(String),
    /// The node, or the cluster.
    All,
}

/// The tokens of a node.
#[derive(Default)]
pub(crate) struct Access {
    /// Whether there is any; read by every request.
    is_closed: AtomicBool,
    /// Whether there are tokens from when the node was alone that the others do not know yet.
    has_own: AtomicBool,
    tokens: RwLock<HashMap<String, Arc<TokenRecord>>>,
    /// Held while tokens change.
    changing: tokio::sync::Mutex<()>,
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

/// Refused tokens of an address: how many it may still send, as of when.
#[derive(Debug, Clone, Copy)]
struct Failures {
    left: f64,
    at: Instant,
}

impl Failures {
    fn now(self) -> Self {
        let at = Instant::now();
        let earned = at.duration_since(self.at).as_secs_f64() * FAILURES_PER_SECOND;
        Self {
            left: (self.left + earned).min(FAILURES),
            at,
        }
    }
}

/// Whether a request may go on; if it came with a token, that token's identifier. What the token is for goes along.
pub(crate) fn admit<B>(
    core: &Core,
    peer: IpAddr,
    request: &mut Request<B>,
) -> Result<Option<String>, Problem> {
    let access = &core.access;
    request.headers_mut().remove(&FUNCTIONS);
    if !access.is_closed.load(Ordering::Acquire) {
        return Ok(None);
    }
    let scope = Scope::of(request);
    if scope == Scope::Nothing {
        return Ok(None);
    }
    let Some(header) = request.headers().get(AUTHORIZATION) else {
        return Err(Problem::new(
            Code::TokenRequired,
            "the request has no Authorization header",
        ));
    };
    let token = header.to_str().ok().and_then(|header| {
        let (scheme, token) = header.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some((id, record)) = token.and_then(|token| access.find(token)) else {
        // A good token is let in whatever else comes from its address: many may share one.
        return Err(match access.failed(peer) {
            true => Problem::new(
                Code::TokenRefused,
                "the token in the Authorization header is not good",
            ),
            false => Problem::new(
                Code::TooManyFailures,
                format!("{peer} sent too many tokens that are not good"),
            ),
        });
    };
    scope
        .is_within(&record)
        .map_err(|detail| Problem::new(Code::ScopeMissing, detail))?;
    // A function is not told of its callers' tokens.
    if !record.functions.is_empty() && !request.uri().path().starts_with(target::PREFIX) {
        let functions = HeaderValue::try_from(record.functions.join(","));
        let functions =
            functions.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        request.headers_mut().insert(FUNCTIONS, functions);
    }
    Ok(Some(id))
}

/// Whether whoever sent a request may see a function.
pub(crate) fn may_see(headers: &HeaderMap, function: &str) -> bool {
    match headers.get(&FUNCTIONS).map(HeaderValue::to_str) {
        None => true,
        Some(Ok(patterns)) => patterns
            .split(',')
            .any(|pattern| matches(pattern, function)),
        Some(Err(_)) => false,
    }
}

impl Scope {
    fn of<B>(request: &Request<B>) -> Self {
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
            return Self::Invoke(Over::Some);
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
            ["artifacts", _] => Self::Deploy(Over::Some),
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
    fn is_within(&self, token: &TokenRecord) -> Result<(), String> {
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
            Over::Some => return Ok(()),
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
pub(crate) const ALL: &str = "*";

/// Whether a pattern covers a function: its name, or the beginning of it before a `*` at the end, of its namespace.
fn matches(pattern: &str, function: &str) -> bool {
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

/// Compares without saying by its time where they differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let differing = a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b));
    std::hint::black_box(differing) == 0
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Access {
    /// Takes up the tokens that are stored.
    pub(crate) fn recover(&self, store: &Store) -> Result<(), Problem> {
        let damaged = |error: String| Problem::new(Code::Internal, error);
        let mut stored = Vec::new();
        store
            .scan(
                Table::System,
                KEY_PREFIX.as_bytes(),
                None,
                &mut |key, value| {
                    stored.push((key.to_vec(), TokenRecord::decode(value)));
                    true
                },
            )
            .map_err(|error| damaged(error.to_string()))?;
        let mut tokens = self.tokens.write();
        for (key, record) in stored {
            let id = String::from_utf8_lossy(&key[KEY_PREFIX.len()..]).into_owned();
            // A node that forgot a token would rather let too few in than open up.
            let record = record.map_err(|error| damaged(format!("token {id}: {error}")))?;
            tokens.insert(id, Arc::new(record));
        }
        self.is_closed.store(!tokens.is_empty(), Ordering::Release);
        self.has_own.store(!tokens.is_empty(), Ordering::Release);
        Ok(())
    }

    /// The token's identifier and record, if it is good.
    fn find(&self, token: &str) -> Option<(String, Arc<TokenRecord>)> {
        let (id, secret) = token.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
        let record = self.tokens.read().get(id).cloned()?;
        let hash: [u8; 32] = Sha256::digest(secret).into();
        equal(&hash, &record.secret_sha256).then(|| (id.to_owned(), record))
    }

    /// All tokens, by identifier.
    pub(crate) fn all(&self) -> Vec<(String, Arc<TokenRecord>)> {
        let tokens = self.tokens.read();
        let mut all: Vec<_> = tokens
            .iter()
            .map(|(id, token)| (id.clone(), token.clone()))
            .collect();
        all.sort_by(|a, b| {
            a.1.created_unix_ms
                .cmp(&b.1.created_unix_ms)
                .then(a.0.cmp(&b.0))
        });
        all
    }

    /// Makes a token; its text is given back here and never again.
    pub(crate) async fn create(
        core: &Core,
        mut record: TokenRecord,
    ) -> Result<(String, String), Problem> {
        let access = &core.access;
        let _turn = access.changing.lock().await;
        if !is_whole_admin(&record) && !access.has_admin_besides(None) {
            return Err(Problem::new(
                Code::TokensInUse,
                "the first token has to have the scope admin, for all functions",
            ));
        }
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut random).map_err(|error| {
            Problem::new(
                Code::Internal,
                format!("the system has no random bytes: {error}"),
            )
        })?;
        let id = hexadecimal(&random[..ID_BYTES]);
        let secret = hexadecimal(&random[ID_BYTES..]);
        record.secret_sha256 = Sha256::digest(&secret).into();
        record.created_unix_ms = clock::unix_ms();
        write(core, &id, Some(record)).await?;
        let token = format!("{TOKEN_PREFIX}{id}_{secret}");
        Ok((id, token))
    }

    /// Revokes a token, at once for all requests from now on. Whether there was one.
    pub(crate) async fn revoke(core: &Core, id: &str) -> Result<bool, Problem> {
        let access = &core.access;
        let _turn = access.changing.lock().await;
        let count = access.tokens.read().len();
        if !access.tokens.read().contains_key(id) {
            return Ok(false);
        }
        if count > 1 && !access.has_admin_besides(Some(id)) {
            return Err(Problem::new(
                Code::TokensInUse,
                format!("{id} is the last token with the scope admin, and there are others"),
            ));
        }
        write(core, id, None).await?;
        Ok(true)
    }

    fn set(&self, id: &str, record: Option<TokenRecord>) {
        let mut tokens = self.tokens.write();
        match record {
            Some(record) => tokens.insert(id.to_owned(), Arc::new(record)),
            None => tokens.remove(id),
        };
        self.is_closed.store(!tokens.is_empty(), Ordering::Release);
    }

    /// Takes over the tokens that all nodes share. Of what cannot be read nobody is let in by it.
    pub(crate) fn take_up(&self, entries: &[Entry]) {
        if self.has_own.load(Ordering::Acquire) {
            // Those of the others alone might let more people in.
            return;
        }
        let tokens: HashMap<_, _> = entries
            .iter()
            .filter_map(|entry| {
                let id = entry.key.strip_prefix(KEY_PREFIX)?;
                let record = TokenRecord::decode(&entry.value);
                let logged =
                    |error: &_| tracing::error!(token = id, %error, "a token cannot be read");
                Some((id.to_owned(), Arc::new(record.inspect_err(logged).ok()?)))
            })
            .collect();
        self.is_closed.store(!entries.is_empty(), Ordering::Release);
        *self.tokens.write() = tokens;
    }

    fn has_admin_besides(&self, id: Option<&str>) -> bool {
        let tokens = self.tokens.read();
        tokens
            .iter()
            .any(|(other, token)| is_whole_admin(token) && Some(other.as_str()) != id)
    }

    /// Counts a refused token; whether the address may still be told so.
    fn failed(&self, peer: IpAddr) -> bool {
        let mut failures = self.failures.lock();
        if failures.len() >= MAX_ADDRESSES {
            failures.retain(|_, failures| failures.now().left < FAILURES);
            if failures.len() >= MAX_ADDRESSES {
                // Whoever has that many addresses is told no more than anybody else.
                return false;
            }
        }
        let fresh = Failures {
            left: FAILURES,
            at: Instant::now(),
        };
        let entry = failures.entry(peer).or_insert(fresh);
        *entry = entry.now();
        let may = entry.left >= 1.0;
        if may {
            entry.left -= 1.0;
        }
        may
    }
}

/// Stores or deletes a token: on this node, or for all of them.
async fn write(core: &Core, id: &str, record: Option<TokenRecord>) -> Result<(), Problem> {
    if let Some(cluster) = &core.cluster {
        let value = record.map(|record| Bytes::from(record.encode()));
        let written = cluster.update(&key(id), |_| value.clone()).await;
        deploy::in_effect(core, cluster, written).await?;
        return Ok(());
    }
    let mut bookkeeping = Bookkeeping::default();
    match &record {
        Some(record) => bookkeeping.put(Table::System, key(id).as_bytes(), record),
        None => bookkeeping.delete(Table::System, key(id).as_bytes()),
    }
    deploy::store(core, bookkeeping).await?;
    core.access.set(id, record);
    Ok(())
}

/// Gives the tokens from when this node was alone to all nodes.
///
/// # Errors
/// When the registry cannot be reached.
pub(crate) async fn share(core: &Core, cluster: &Cluster) -> Result<(), Problem> {
    let mut own = Vec::new();
    let scanned = core.store.scan(
        Table::System,
        KEY_PREFIX.as_bytes(),
        None,
        &mut |key, value| {
            own.push((String::from_utf8_lossy(key).into_owned(), value.to_vec()));
            true
        },
    );
    scanned.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    for (key, value) in own {
        let value = Bytes::from(value);
        let written = cluster.update(&key, |_| Some(value.clone())).await;
        written.map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()))?;
        let mut bookkeeping = Bookkeeping::default();
        bookkeeping.delete(Table::System, key.as_bytes());
        deploy::store(core, bookkeeping).await?;
    }
    core.access.has_own.store(false, Ordering::Release);
    Ok(())
}

fn key(id: &str) -> String {
    format!("{KEY_PREFIX}{id}")
}

/// Whether its bearer may make other tokens.
fn is_whole_admin(token: &TokenRecord) -> bool {
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
        assert_eq!(scope("GET", "/invocations/1-2"), Scope::Invoke(Over::Some));
        let deploy = Scope::Deploy(function("shop.a"));
        assert_eq!(scope("PUT", "/admin/functions/shop.a"), deploy);
        assert_eq!(
            scope("PUT", "/admin/functions/shop%2Ea"),
            deploy,
            "as the router reads it"
        );
        assert_eq!(
            scope("PUT", "/admin/artifacts/00"),
            Scope::Deploy(Over::Some)
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

    #[test]
    fn an_address_has_a_number_of_failures_and_others_have_their_own() {
        let access = Access::default();
        let (bad, good) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..FAILURES as u32 {
            assert!(access.failed(bad));
        }
        assert!(!access.failed(bad));
        assert!(access.failed(good));
    }
}
