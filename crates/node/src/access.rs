//! Who may do what: bearer tokens with scopes.
//!
//! As long as there is no token everybody may do everything, as on a machine of one's own. From the
//! first token on every request needs one. A token is `fulmar_ID_SECRET`; stored is a SHA-256 of the
//! secret, which is 160 random bits, so that no slower hash is needed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use fulmar_cluster::Cluster;
use fulmar_cluster::registry::Entry;
use fulmar_model::{Code, Problem};
use fulmar_state::record::{Record as _, TokenRecord};
use fulmar_state::{Bookkeeping, Store, Table};
use http::header::AUTHORIZATION;
use http::{Method, Request};
use parking_lot::{Mutex, RwLock};
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

/// What a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    /// Nothing: whether the node lives.
    Nothing,
    /// Any token.
    Any,
    /// To invoke a function, or to ask after any invocation.
    Invoke(Option<String>),
    /// To deploy or remove a function, or to upload for any.
    Deploy(Option<String>),
    Admin,
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

/// Whether a request may go on; if it came with a token, that token's identifier.
pub(crate) fn admit<B>(
    core: &Core,
    peer: IpAddr,
    request: &Request<B>,
) -> Result<Option<String>, Problem> {
    let access = &core.access;
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
    match scope.is_within(&record) {
        Ok(()) => Ok(Some(id)),
        Err(detail) => Err(Problem::new(Code::ScopeMissing, detail)),
    }
}

impl Scope {
    fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if path.starts_with(target::PREFIX) {
            // A path that makes no sense is refused later, with its own code.
            let function = Target::parse(path).map(|target| target.function.into_owned());
            return Self::Invoke(Some(function.unwrap_or_default()));
        }
        match path {
            "/healthz" | "/readyz" => return Self::Nothing,
            "/metrics" => return Self::Any,
            _ => {}
        }
        if path.starts_with("/invocations/") && is_read {
            return Self::Invoke(None);
        }
        if path.starts_with("/admin/artifacts/") {
            return Self::Deploy(None);
        }
        if let Some(name) = path.strip_prefix("/admin/functions/")
            && !name.contains('/')
        {
            return Self::Deploy(Some(name.to_owned()));
        }
        if path == "/admin/functions" && is_read {
            return Self::Any;
        }
        Self::Admin
    }

    /// # Errors
    /// What the token lacks.
    fn is_within(&self, token: &TokenRecord) -> Result<(), String> {
        let lacks = |scope: &str| Err(format!("the token lacks the scope {scope}"));
        let covers = |function: &Option<String>| match function {
            None => true,
            Some(_) if token.functions.is_empty() => true,
            Some(function) => token
                .functions
                .iter()
                .any(|pattern| matches(pattern, function)),
        };
        match self {
            Self::Nothing | Self::Any => Ok(()),
            Self::Invoke(_) if !token.may_invoke => lacks("invoke"),
            Self::Deploy(_) if !token.may_deploy => lacks("deploy"),
            Self::Admin if !token.may_admin => lacks("admin"),
            Self::Invoke(function) | Self::Deploy(function) if !covers(function) => Err(format!(
                "the token is for {} only, not for {}",
                token.functions.join(", "),
                function.as_deref().unwrap_or_default()
            )),
            _ => Ok(()),
        }
    }
}

/// Whether a pattern covers a function: its name, or the beginning of it before a `*` at the end.
fn matches(pattern: &str, function: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => function.starts_with(beginning),
        None => pattern == function,
    }
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
        if !record.may_admin && !access.has_admin_besides(None) {
            return Err(Problem::new(
                Code::TokensInUse,
                "the first token has to have the scope admin",
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
            .any(|(other, token)| token.may_admin && Some(other.as_str()) != id)
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
        let invoke = Scope::Invoke(Some("track".into()));
        assert_eq!(scope("POST", "/fn/track/line-3"), invoke);
        assert_eq!(
            scope("POST", "/fn/tr%61ck"),
            invoke,
            "as the broker reads it"
        );
        assert_eq!(scope("GET", "/invocations/1-2"), Scope::Invoke(None));
        assert_eq!(
            scope("PUT", "/admin/functions/a"),
            Scope::Deploy(Some("a".into()))
        );
        assert_eq!(scope("PUT", "/admin/artifacts/00"), Scope::Deploy(None));
        assert_eq!(scope("GET", "/healthz"), Scope::Nothing);
        assert_eq!(scope("GET", "/metrics"), Scope::Any);
        for path in [
            "/admin/tokens",
            "/admin/node",
            "/admin/sessions/a/b",
            "/admin/functions/a/b",
            "/x",
        ] {
            assert_eq!(scope("GET", path), Scope::Admin, "{path}");
        }
        assert_eq!(scope("DELETE", "/invocations/1-2"), Scope::Admin);
    }

    #[test]
    fn scopes_and_patterns_are_both_needed() {
        let invoke = |name: &str| Scope::Invoke(Some(name.into()));
        let camera = token(true, false, false, &["track-*", "count"]);
        assert!(invoke("track-a").is_within(&camera).is_ok());
        assert!(invoke("count").is_within(&camera).is_ok());
        let text = invoke("counter").is_within(&camera).unwrap_err();
        assert_eq!(
            text,
            "the token is for track-*, count only, not for counter"
        );
        assert!(
            Scope::Deploy(Some("count".into()))
                .is_within(&camera)
                .is_err()
        );
        assert!(Scope::Admin.is_within(&camera).is_err());
        assert!(Scope::Any.is_within(&camera).is_ok());
        assert!(
            invoke("any")
                .is_within(&token(true, false, false, &[]))
                .is_ok()
        );
        assert!(
            invoke("any")
                .is_within(&token(false, true, true, &[]))
                .is_err()
        );
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
