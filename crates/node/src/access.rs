//! Who may do what: bearer tokens with scopes.
//!
//! As long as there is no token everybody may do everything, as on a machine of one's own. From the
//! first token on every request needs one. A token is `fulmar_ID_SECRET`; stored is a SHA-256 of the
//! secret, which is 160 random bits, so that no slower hash is needed. A token for some functions only lets its bearer see
//! nothing of others: what a request's path does not tell is left to whoever answers it ([`may_see`]).

mod scope;

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
use http::Request;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};

use crate::core::Core;
use crate::target;
use crate::{clock, deploy};
pub(crate) use scope::is_pattern;
use scope::{Scope, is_whole_admin, matches};

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

#[cfg(test)]
mod tests {
    use super::*;

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
