//! An image from a registry, as the archive of an image layout that nodes take: the same for the same image, since its digest is
//! what tells versions apart.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::output::hex;

/// What an artefact that is in a registry begins with.
pub(super) const SCHEME: &str = "oci://";
/// What a registry may answer with: an image, or one for each kind of machine.
const ACCEPTED: [&str; 4] = [
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];
/// A registry that does not answer for so long is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// One that says nothing for so long in the middle of an answer has stopped.
const SILENCE: Duration = Duration::from_secs(60);

/// How to get at registries.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Options {
    /// Take the image for this kind of machine from a registry, as in linux/arm64; may be given several times, for nodes of several
    /// kinds [default: this machine's]
    #[arg(long = "platform", value_name = "OS/ARCH")]
    platforms: Vec<String>,
    /// A registry, HOST or HOST:PORT, that is spoken to without TLS; those on this machine are.
    #[arg(long, env = "FULMAR_PLAIN_HTTP", value_name = "HOST")]
    plain_http: Vec<String>,
}

/// An image that is being put together.
struct Layout {
    archive: Builder<Vec<u8>>,
    has: BTreeSet<String>,
}

/// A manifest or an index, as the registry has it.
struct Answer {
    bytes: Vec<u8>,
    digest: String,
    document: Value,
}

/// The archive of an image layout of what a registry has.
pub(super) fn pull(name: &str, options: &Options) -> anyhow::Result<Vec<u8>> {
    let reference: Reference = name.strip_prefix(SCHEME).unwrap_or(name).parse().with_context(|| {
        format!("{name} names no image\n  fix: write it as in {SCHEME}registry.example/team/name@sha256:… or :tag")
    })?;
    // The one that everything else here uses; that it was chosen before is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(Pulling::of(reference, options)?.run(options))
}

/// What is pulled, and from where.
struct Pulling {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Pulling {
    fn of(reference: Reference, options: &Options) -> anyhow::Result<Self> {
        let registry = reference.resolve_registry();
        let is_plain = is_here(registry) || options.plain_http.iter().any(|host| host == registry);
        let protocol = match is_plain {
            true => ClientProtocol::Http,
            false => ClientProtocol::Https,
        };
        let client = Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: concat!("fulmar/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })?;
        let auth = credentials(registry)?;
        Ok(Self {
            client,
            reference,
            auth,
        })
    }

    async fn run(&self, options: &Options) -> anyhow::Result<Vec<u8>> {
        let answer = self.manifest(&self.reference).await?;
        if self.reference.digest().is_none() {
            let by_digest = self.reference.clone_with_digest(answer.digest.clone());
            let reference = &self.reference;
            eprintln!("{reference} is {SCHEME}{by_digest} now; under that name it stays the same");
        }
        let mut wanted = options.platforms.clone();
        if wanted.is_empty() {
            wanted.push(own_platform());
        }
        if !answer.document["manifests"].is_array() {
            return self.layout(&[answer], &wanted).await;
        }
        let mut images = Vec::new();
        for platform in &wanted {
            images.push(self.one_of(&answer.document, platform).await?);
        }
        self.layout(&images, &wanted).await
    }

    /// The image of an index for one kind of machine.
    async fn one_of(&self, index: &Value, platform: &str) -> anyhow::Result<Answer> {
        let images = index["manifests"].as_array().map(Vec::as_slice);
        let images = images.unwrap_or_default();
        let found = images
            .iter()
            .find(|image| name_of(&image["platform"]) == platform);
        let Some(digest) = found.and_then(|image| image["digest"].as_str()) else {
            let names = images.iter().map(|image| name_of(&image["platform"]));
            // Attestations are among the images.
            let mut has: Vec<String> = names.filter(|name| !name.contains("unknown")).collect();
            has.sort();
            bail!(
                "{} is not for {platform}, but for {}\n  fix: choose one with --platform, if your nodes are of that kind",
                self.reference,
                has.join(", ")
            );
        };
        let one = self.reference.clone_with_digest(digest.to_owned());
        self.manifest(&one).await
    }

    /// What a name stands for; its digest is the one of the name if that has one.
    async fn manifest(&self, reference: &Reference) -> anyhow::Result<Answer> {
        let answered = self
            .client
            .pull_manifest_raw(reference, &self.auth, &ACCEPTED)
            .await;
        let (bytes, _) = answered.map_err(|error| self.explained(reference, error))?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        if reference.digest().is_some_and(|wanted| wanted != digest) {
            bail!(
                "{reference}: what the registry sent has the digest {digest}\n  fix: whoever runs the registry has to look"
            );
        }
        let document = serde_json::from_slice(&bytes)
            .with_context(|| format!("what the registry has as {reference} is no image"))?;
        Ok(Answer {
            bytes: bytes.to_vec(),
            digest,
            document,
        })
    }

    async fn layout(&self, images: &[Answer], wanted: &[String]) -> anyhow::Result<Vec<u8>> {
        let mut layout = Layout {
            archive: Builder::new(Vec::new()),
            has: BTreeSet::new(),
        };
        let mut index = Vec::new();
        for image in images {
            let config = &image.document["config"];
            let config_bytes = self.blob(config).await?;
            let config_document: Value =
                serde_json::from_slice(&config_bytes).context("the image's configuration")?;
            let platform = name_of(&config_document);
            if !wanted.contains(&platform) {
                bail!(
                    "{} is for {platform}, not for {}\n  fix: say --platform {platform}, if your nodes are of that kind",
                    self.reference,
                    wanted.join(", ")
                );
            }
            layout.blob(&image.digest, &image.bytes)?;
            layout.blob(digest_of(config)?, &config_bytes)?;
            for layer in image.document["layers"].as_array().into_iter().flatten() {
                let digest = digest_of(layer)?;
                if !layout.has.contains(digest) {
                    layout.blob(digest, &self.blob(layer).await?)?;
                }
            }
            index.push(json!({
                "mediaType": image.document["mediaType"].as_str().unwrap_or(OCI_IMAGE_MEDIA_TYPE),
                "digest": image.digest,
                "size": image.bytes.len(),
                "platform": { "architecture": config_document["architecture"], "os": config_document["os"] },
            }));
        }
        let index = json!({ "schemaVersion": 2, "manifests": index });
        layout.file("index.json", index.to_string().as_bytes())?;
        layout.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout.archive.into_inner()?)
    }

    /// A blob whose digest is the one that its descriptor names.
    async fn blob(&self, descriptor: &Value) -> anyhow::Result<Vec<u8>> {
        let descriptor: OciDescriptor = serde_json::from_value(descriptor.clone())
            .context("a part of the image is not described as images are")?;
        let size = usize::try_from(descriptor.size)
            .context("a part of the image has a size below zero")?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(size)
            .with_context(|| format!("a part of the image has {size} bytes"))?;
        let pulled = self
            .client
            .pull_blob(&self.reference, &descriptor, &mut bytes)
            .await;
        pulled.map_err(|error| self.explained(&self.reference, error))?;
        Ok(bytes)
    }

    fn explained(&self, reference: &Reference, error: OciDistributionError) -> anyhow::Error {
        let registry = reference.resolve_registry();
        let fix = match &error {
            OciDistributionError::ImageManifestNotFoundError(_) => {
                "correct its name, tag or digest".to_owned()
            }
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|error| {
                    matches!(
                        error.code,
                        OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown
                    )
                }) =>
            {
                "correct its name, tag or digest".to_owned()
            }
            OciDistributionError::RegistryError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. } => {
                let known = match self.auth {
                    RegistryAuth::Anonymous => "no credentials are known for it",
                    _ => "the known credentials were sent",
                };
                format!(
                    "log in with `docker login {registry}` or `podman login {registry}` ({known})"
                )
            }
            OciDistributionError::RequestError(_) => {
                format!(
                    "check that {registry} can be reached; if it has no TLS, say --plain-http {registry}"
                )
            }
            _ => "try again; if it stays so, whoever runs the registry has to look".to_owned(),
        };
        anyhow!(error).context(format!("{reference} cannot be pulled\n  fix: {fix}"))
    }
}

impl Layout {
    fn blob(&mut self, digest: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let Some(name) = digest.strip_prefix("sha256:") else {
            bail!(
                "a part of the image has the digest {digest}\n  fix: give an image whose digests are SHA-256"
            );
        };
        if self.has.insert(digest.to_owned()) {
            self.file(&format!("blobs/sha256/{name}"), bytes)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        Ok(self.archive.append_data(&mut header, path, bytes)?)
    }
}

fn digest_of(descriptor: &Value) -> anyhow::Result<&str> {
    descriptor["digest"]
        .as_str()
        .context("a part of the image has no digest")
}

/// `os/architecture` of whatever has both.
fn name_of(platform: &Value) -> String {
    let part = |key: &str| platform[key].as_str().unwrap_or("unknown").to_owned();
    format!("{}/{}", part("os"), part("architecture"))
}

fn own_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// Whether a registry is on this machine.
fn is_here(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What `docker login` or `podman login` keeps for a registry.
fn credentials(registry: &str) -> anyhow::Result<RegistryAuth> {
    use CredentialRetrievalError as Why;
    let known_as = match registry {
        "index.docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    for look in [
        docker_credential::get_podman_credential,
        docker_credential::get_credential,
    ] {
        match look(known_as) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Ok(RegistryAuth::Basic(user, password));
            }
            Ok(DockerCredential::IdentityToken(_)) => {
                bail!(
                    "for {registry} an identity token is kept, which cannot be used here\n  fix: log in with a user and an access token"
                );
            }
            Err(Why::ConfigNotFound | Why::ConfigReadError | Why::NoCredentialConfigured) => {}
            Err(error) => {
                return Err(anyhow!(error)).with_context(|| {
                    format!("cannot read what is kept for {registry}\n  fix: log in again with `docker login {registry}`")
                });
            }
        }
    }
    Ok(RegistryAuth::Anonymous)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_on_this_machine_are_told_from_others() {
        for here in [
            "localhost:5000",
            "localhost",
            "127.0.0.1:5000",
            "[::1]:5000",
        ] {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in [
            "localhost.example",
            "10.0.0.1:5000",
            "index.docker.io",
            "127.0.0.1.example:443",
        ] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
    }
}
