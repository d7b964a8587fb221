//! The node's HTTP API, as the commands use it.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use fulmar_model::Problem;
use fulmar_model::id::DEFAULT_NAMESPACE;
use serde_json::Value;
use ureq::http::{Method, Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, SendBody};

/// Where `fulmar dev` listens unless told otherwise.
const USUAL_NODE: &str = "http://127.0.0.1:7400";

/// Which node to talk to, and how to print; flags of every command but `dev`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// The node's address.
    #[arg(
        long,
        env = "FULMAR_NODE",
        default_value = USUAL_NODE,
        global = true
    )]
    node: String,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// A token, where the node asks for one; see `fulmar token`.
    #[arg(long, env = "FULMAR_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// The namespace of the functions and shared buckets that are named without one [default: default]
    #[arg(long, env = "FULMAR_NAMESPACE", value_name = "NAME", global = true)]
    namespace: Option<String>,
    /// Certificates of the authorities to trust, PEM, for a node that speaks HTTPS.
    #[arg(long, env = "FULMAR_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

/// A connection to a node.
pub(crate) struct Client {
    base: String,
    agent: Agent,
    token: Option<String>,
}

pub(crate) use fulmar_node::target::encode_segment as segment;

impl Target {
    /// A node on this machine that asks for no token.
    pub(crate) fn local(url: String) -> Self {
        Self {
            node: url,
            json: false,
            token: None,
            namespace: None,
            ca: None,
        }
    }

    /// The node's address.
    pub(crate) fn url(&self) -> &str {
        self.node.trim_end_matches('/')
    }

    /// What a command line needs to name the same node: nothing if it is the usual one.
    pub(crate) fn flag(&self) -> String {
        if self.url() == USUAL_NODE {
            String::new()
        } else {
            format!(" --node {}", self.url())
        }
    }

    /// The namespace that was named, unless it is the default one.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace
            .as_deref()
            .filter(|namespace| *namespace != DEFAULT_NAMESPACE)
    }

    /// A function, or a pattern of functions, with its namespace.
    pub(crate) fn function(&self, name: &str) -> String {
        match self.namespace() {
            Some(namespace) if !name.contains('.') => format!("{namespace}.{name}"),
            _ => name.to_owned(),
        }
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::new_with_certs(&[]));
        if let Some(ca) = &self.ca {
            tls = tls.root_certs(trusted(ca)?.into());
        } else if self.node.starts_with("https:") {
            bail!(
                "{} speaks HTTPS, and no authority is known to trust\n  fix: give the authority's certificate with --ca or FULMAR_CA",
                self.url()
            );
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .tls_config(tls.build())
            .build();
        Ok(Client {
            base: self.url().to_owned(),
            token: self.token.clone(),
            agent: config.into(),
        })
    }
}

/// The certificates in a file.
fn trusted(path: &Path) -> anyhow::Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        let item = item.with_context(|| format!("{} is no PEM file", path.display()))?;
        if let PemItem::Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        bail!("there is no certificate in {}", path.display());
    }
    Ok(certificates)
}

impl Client {
    /// Sends a request and gives the response back, whatever its status.
    pub(crate) fn send<'a>(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<SendBody<'a>>,
    ) -> anyhow::Result<Response<Body>> {
        let method = Method::from_bytes(method.as_bytes())
            .with_context(|| format!("{method:?} is no HTTP method"))?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = match body {
            Some(body) => self.agent.run(request.body(body)?),
            None => self.agent.run(request.body(())?),
        };
        sent.map_err(|error| match error {
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                self.not_there()
            }
            ureq::Error::ConnectionFailed => self.not_there(),
            other => anyhow!(other).context(format!("talking to the node at {}", self.base)),
        })
    }

    fn not_there(&self) -> anyhow::Error {
        anyhow!(
            "no node answers at {}\n  fix: start one with `fulmar dev`, or name another with --node or FULMAR_NODE",
            self.base
        )
    }

    /// Sends a request; a status of 400 or above is an error with the node's own words.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> anyhow::Result<Response<Body>> {
        let body =
            body.map(|body| SendBody::from_owned_reader(std::io::Cursor::new(body.to_vec())));
        succeed(self.send(method, path, &[], body)?)
    }

    /// The JSON that the node answers.
    pub(crate) fn json(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> anyhow::Result<Value> {
        let bytes = read(self.call(method, path, body)?)?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the node answered {path} with something else than JSON"))
    }
}

/// A problem that the node answered: what happened and what to do. The code is told apart, for the
/// first words of an error.
#[derive(Debug)]
pub(crate) struct Refusal(Problem);

impl Refusal {
    /// The stable code.
    pub(crate) fn code(&self) -> fulmar_model::Code {
        self.0.code
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            code, detail, fix, ..
        } = &self.0;
        write!(f, "{}: {detail}\n  fix: {fix}", code.title())
    }
}

impl std::error::Error for Refusal {}

/// Turns a refusal into an error that says what to do.
pub(crate) fn succeed(response: Response<Body>) -> anyhow::Result<Response<Body>> {
    let status = response.status();
    if status.as_u16() < 400 {
        return Ok(response);
    }
    let bytes = read(response)?;
    Err(match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => Refusal(problem).into(),
        Err(_) => anyhow!(
            "the node answered {status}: {}",
            String::from_utf8_lossy(&bytes)
        ),
    })
}

/// The whole body of a response.
pub(crate) fn read(response: Response<Body>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    response
        .into_body()
        .into_reader()
        .read_to_end(&mut bytes)
        .context("the node's answer broke off")?;
    Ok(bytes)
}
