//! `fulmar ca`: a certificate authority for a small deployment.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use crate::client::Target;
use crate::output;

/// What the authority calls itself; its certificates are found by it.
const AUTHORITY: &str = "Fulmar CA";
/// How long certificates are good, in days.
const AUTHORITY_DAYS: u64 = 3_650;
const NODE_DAYS: u64 = 825;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make an authority: DIR/ca.crt, which everybody may have, and DIR/ca.key, which nobody else may.
    Init {
        /// Folder for its files.
        #[arg(long, value_name = "DIR", default_value = "./ca")]
        dir: PathBuf,
    },
    /// Issue a certificate for a node: DIR/NODE.crt and DIR/NODE.key.
    Issue {
        /// The node.
        node: String,
        /// A host name or an IP address by which it is reached; may be given several times.
        #[arg(long, required = true)]
        name: Vec<String>,
        /// Folder with the authority's files.
        #[arg(long, value_name = "DIR", default_value = "./ca")]
        dir: PathBuf,
    },
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Init { dir } => init(target, dir),
        Verb::Issue { node, name, dir } => issue(target, node, name, dir),
    }
}

fn authority() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(AUTHORITY);
    valid_for(&mut params, AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// From yesterday, since clocks differ, for so many days.
fn valid_for(params: &mut CertificateParams, days: u64) {
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    params.not_before = (now - day).into();
    params.not_after = (now + day * days as u32).into();
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn init(target: &Target, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let key = KeyPair::generate()?;
    let certificate = authority()?.self_signed(&key)?;
    let (certificate_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
    // The key first: an authority whose key is lost is none.
    write(&key_file, &key.serialize_pem(), 0o600)?;
    write(&certificate_file, &certificate.pem(), 0o644)?;
    let outcome = json!({ "certificate": certificate_file, "key": key_file });
    let text = format!(
        "made {}; keep {} to yourself",
        certificate_file.display(),
        key_file.display()
    );
    output::done(target.json, &text, &outcome);
    Ok(())
}

fn issue(target: &Target, node: &str, names: &[String], dir: &Path) -> anyhow::Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if node.is_empty() || node == "ca" || node.starts_with('.') || !node.chars().all(is_plain) {
        bail!("{node:?} cannot name a node\n  fix: use letters, digits, -, _ and .; not `ca`");
    }
    let ca_key = dir.join("ca.key");
    let pem = std::fs::read_to_string(&ca_key).with_context(|| {
        format!(
            "cannot read {}; make an authority first with `fulmar ca init`",
            ca_key.display()
        )
    })?;
    let ca_key = KeyPair::from_pem(&pem).with_context(|| format!("{}", ca_key.display()))?;
    let issuer = Issuer::new(authority()?, ca_key);
    let mut names = names.to_vec();
    // What other nodes know it by, whatever its address is.
    match fulmar_model::NodeName::new(node) {
        Ok(node) => names.push(format!("{node}.node.fulmar")),
        Err(error) => eprintln!("note: {error}, so it is good for clients, not for other nodes"),
    }
    let mut params = CertificateParams::new(names).context("--name")?;
    params.distinguished_name = named(node);
    valid_for(&mut params, NODE_DAYS);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Nodes are clients of each other as well.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let certificate_file = dir.join(format!("{node}.crt"));
    let key_file = dir.join(format!("{node}.key"));
    write(&key_file, &key.serialize_pem(), 0o600)?;
    write(&certificate_file, &certificate.pem(), 0o644)?;
    let outcome = json!({ "certificate": certificate_file, "key": key_file });
    let text = format!(
        "made {} and {}",
        certificate_file.display(),
        key_file.display()
    );
    output::done(target.json, &text, &outcome);
    Ok(())
}

/// Writes a new file; one that is there is left alone.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| {
            format!(
                "cannot write {}, which must not be there yet",
                path.display()
            )
        })
}
