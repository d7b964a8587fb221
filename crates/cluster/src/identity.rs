//! Who a node is to others: a certificate for `NAME.node.fulmar` by the deployment's authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fulmar_model::NodeName;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// What a node's certificate is for: the node's name, and this.
pub const SUFFIX: &str = ".node.fulmar";

/// A node's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read, or is not what it should be.
    #[error("cannot use {path}: {reason}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// They do not fit together.
    #[error("certificate, key and authority do not fit together: {0}")]
    Config(String),
    /// The certificate is somebody else's.
    #[error(
        "the certificate {path} is not for the node {node}; issue one with `fulmar ca issue {node} --name HOST`"
    )]
    OtherNode {
        /// The certificate.
        path: PathBuf,
        /// The node that wants to use it.
        node: NodeName,
    },
}

/// A node's certificate and key, and whom it trusts.
#[derive(Debug)]
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// Reads PEM files: the authority's certificates, the node's chain (its own first) and key.
    ///
    /// # Errors
    /// When they cannot be read, do not fit together, or are not for this node.
    pub fn load(
        node: &NodeName,
        authority: &Path,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, IdentityError> {
        let file = |path: &Path, reason: String| IdentityError::File {
            path: path.to_owned(),
            reason,
        };
        let chain = |path: &Path| {
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| file(path, error.to_string()))?;
            match certificates.is_empty() {
                true => Err(file(path, "there is no certificate in it".into())),
                false => Ok(certificates),
            }
        };
        let mut roots = RootCertStore::empty();
        for root in chain(authority)? {
            roots
                .add(root)
                .map_err(|error| file(authority, error.to_string()))?;
        }
        let own = chain(certificate)?;
        let other = || IdentityError::OtherNode {
            path: certificate.to_owned(),
            node: node.clone(),
        };
        if !own.first().is_some_and(|own| is_for(own, node)) {
            return Err(other());
        }
        let read_key =
            || PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, error.to_string()));
        let config = |error: &dyn std::fmt::Display| IdentityError::Config(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| config(&error))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(
                        own.clone(),
                        read_key()
                            .map_err(|_| rustls::Error::General("the key cannot be read".into()))?,
                    )
            })
            .map_err(|error| config(&error))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| config(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(own, read_key()?)
            .map_err(|error| config(&error))?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// What the node's certificate has to be for.
    pub(crate) fn server_name(node: &NodeName) -> ServerName<'static> {
        // A node's name is a DNS label, and so is each part of the suffix.
        ServerName::try_from(format!("{node}{SUFFIX}"))
            .unwrap_or_else(|_| unreachable!("{node}{SUFFIX} is a host name"))
    }
}

/// Whether a certificate is for the node of this name.
pub(crate) fn is_for(certificate: &CertificateDer<'_>, node: &NodeName) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| verify_server_name(&parsed, &Identity::server_name(node)).is_ok())
}
