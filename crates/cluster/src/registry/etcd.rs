//! etcd as the registry.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use futures_util::StreamExt;

use crate::config::{ConfigError, RegistryConfig};

use super::{
    Change, Changes, Entry, LeaseId, Registry, RegistryError, Revision, Snapshot, Written,
};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Pause before another member is tried.
const RETRY: Duration = Duration::from_millis(50);
/// How long etcd keeps a lease at least, in seconds.
const MIN_TTL_SECONDS: i64 = 2;

/// etcd, all keys below a prefix.
pub struct Etcd {
    client: Client,
    prefix: String,
}

fn failed(error: etcd_client::Error) -> RegistryError {
    use etcd_client::Error;
    match &error {
        Error::GRpcStatus(status) => match status.code() {
            tonic::Code::InvalidArgument
            | tonic::Code::PermissionDenied
            | tonic::Code::Unauthenticated
            | tonic::Code::ResourceExhausted => RegistryError::Refused(status.message().to_owned()),
            tonic::Code::NotFound => RegistryError::LeaseLost,
            _ => RegistryError::Unreachable(status.message().to_owned()),
        },
        Error::LeaseKeepAliveError(_) => RegistryError::LeaseLost,
        _ => RegistryError::Unreachable(error.to_string()),
    }
}

async fn in_time<T>(
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, RegistryError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(RegistryError::Unreachable(format!(
            "no answer within {DEADLINE:?}"
        ))),
    }
}

/// Whether a member could not be connected to, so that another may be tried: nothing was sent.
fn nothing_sent(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if status.code() == tonic::Code::Unavailable && status.message().contains("connect error"))
}

/// Tries again while `again` says so, until an answer is due.
async fn retried<T, F>(
    mut call: impl FnMut() -> F,
    again: impl Fn(&etcd_client::Error) -> bool,
) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    in_time(async {
        loop {
            match call().await {
                Err(error) if again(&error) => tokio::time::sleep(RETRY).await,
                result => return result,
            }
        }
    })
    .await
}

/// How etcd is spoken to.
#[derive(Default)]
pub struct Access {
    tls: Option<TlsOptions>,
    user: Option<(String, String)>,
}

impl Access {
    /// Reads what `[registry]` names.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(config: &RegistryConfig) -> Result<Self, ConfigError> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })
        };
        let mut access = Self::default();
        if let Some(ca) = &config.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            access.tls = Some(tls);
        }
        if let (Some(user), Some(file)) = (&config.user, &config.password_file) {
            access.user = Some((user.clone(), read(file)?.trim_end().to_owned()));
        }
        Ok(access)
    }
}

impl Etcd {
    /// Connects to the members at `endpoints` (`http://HOST:PORT` or `https://HOST:PORT`); keys are below `prefix`.
    ///
    /// # Errors
    /// When none of them answers.
    pub async fn connect(
        endpoints: &[String],
        prefix: &str,
        access: &Access,
    ) -> Result<Self, RegistryError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(Duration::from_secs(2), CONNECT)
            .with_keep_alive_while_idle(true);
        if let Some(tls) = &access.tls {
            options = options.with_tls(tls.clone());
        }
        if let Some((user, password)) = &access.user {
            // etcd forgets who is who when it starts again, and after some minutes of silence.
            options = options
                .with_user(user, password)
                .with_auto_token_refresh(true);
        }
        let client = in_time(Client::connect(endpoints, Some(options))).await?;
        Ok(Self {
            client,
            prefix: prefix.to_owned(),
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn entry(&self, found: &KeyValue) -> Entry {
        let key = String::from_utf8_lossy(found.key());
        Entry {
            key: key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned(),
            value: Bytes::copy_from_slice(found.value()),
            revision: found.mod_revision() as Revision,
        }
    }

    /// Does `write` if the key is at the revision `expected`.
    async fn write_if(
        &self,
        key: &str,
        expected: Revision,
        write: TxnOp,
    ) -> Result<Written, RegistryError> {
        let key = self.key(key);
        let condition = Compare::mod_revision(key.as_str(), CompareOp::Equal, expected as i64);
        let txn = Txn::new()
            .when([condition])
            .and_then([write])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let call = || {
            let (mut kv, txn) = (self.client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        };
        let answer = retried(call, nothing_sent).await?;
        let revision = answer.header().map_or(0, |header| header.revision()) as Revision;
        if answer.succeeded() {
            return Ok(Written::Done(revision));
        }
        let present = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(found) => found.kvs().first().map(|found| self.entry(found)),
            _ => None,
        });
        Ok(Written::Conflict(present))
    }
}

#[tonic::async_trait]
impl Registry for Etcd {
    async fn list(&self, prefix: &str) -> Result<Snapshot, RegistryError> {
        let call = || {
            let (mut kv, key) = (self.client.kv_client(), self.key(prefix));
            async move { kv.get(key, Some(GetOptions::new().with_prefix())).await }
        };
        let is_down = |error: &etcd_client::Error| matches!(error, etcd_client::Error::GRpcStatus(status) if status.code() == tonic::Code::Unavailable);
        // Reading twice does no harm.
        let found = retried(call, is_down).await?;
        Ok(Snapshot {
            entries: found.kvs().iter().map(|found| self.entry(found)).collect(),
            revision: found.header().map_or(0, |header| header.revision()) as Revision,
        })
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        lease: Option<LeaseId>,
    ) -> Result<Written, RegistryError> {
        let options = lease.map(|lease| PutOptions::new().with_lease(lease.0 as i64));
        let write = TxnOp::put(self.key(key), value.to_vec(), options);
        self.write_if(key, expected, write).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Written, RegistryError> {
        let write = TxnOp::delete(self.key(key), None);
        self.write_if(key, expected, write).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        let seconds = (ttl.as_secs_f64().ceil() as i64).max(MIN_TTL_SECONDS);
        let granted = in_time(self.client.lease_client().grant(seconds, None)).await?;
        Ok(LeaseId(granted.id() as u64))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), RegistryError> {
        // One message and its answer: the next one comes much later, perhaps to another member.
        let mut leases = self.client.lease_client();
        in_time(leases.keep_alive(lease.0 as i64)).await.map(|_| ())
    }

    async fn watch(&self, after: Revision) -> Result<Changes, RegistryError> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(after as i64 + 1);
        let mut client = self.client.watch_client();
        let stream = in_time(client.watch(self.prefix.as_str(), Some(options))).await?;
        let prefix = self.prefix.clone();
        let stream = stream.map(move |answer| {
            let answer = answer.map_err(failed)?;
            if answer.compact_revision() > 0 {
                return Err(RegistryError::Compacted(after));
            }
            if answer.canceled() {
                let reason = answer.cancel_reason().to_owned();
                return Err(RegistryError::Unreachable(reason));
            }
            let changes = answer.events().iter().filter_map(|event| {
                let found = event.kv()?;
                let key = String::from_utf8_lossy(found.key());
                let is_put = event.event_type() == etcd_client::EventType::Put;
                Some(Change {
                    key: key.strip_prefix(&prefix).unwrap_or(&key).to_owned(),
                    value: is_put.then(|| Bytes::copy_from_slice(found.value())),
                    revision: found.mod_revision() as Revision,
                })
            });
            Ok(changes.collect::<Vec<_>>())
        });
        // The first answer says no more than that the watch has begun.
        let stream = stream.filter(|changes| {
            let is_empty = changes.as_ref().is_ok_and(Vec::is_empty);
            std::future::ready(!is_empty)
        });
        Ok(stream.boxed())
    }
}
