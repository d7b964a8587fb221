//! Images from a registry: Debian's, which is Docker's.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::etcd::free_ports;
use common::images::{COUNTER, Image, architecture, has_runtime};
use common::{Node, sha256};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::{OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::{Value, json};

/// A registry that is there for one test.
struct Registry {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Who may use one that asks: bcrypt of `secret`.
const USERS: &str = "someone:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Registry {
    /// Starts one, unless there is none, or no container can run here, which is said loudly.
    fn start(asks: bool) -> Option<Self> {
        let version = Command::new("docker-registry").arg("--version").output();
        if version.is_err() {
            eprintln!("SKIPPED: there is no registry here; install docker-registry");
            return None;
        }
        if !has_runtime() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports(1)[0];
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": folder.path().join("data") } },
            "http": { "addr": format!("127.0.0.1:{port}"), "secret": "for one test" },
        });
        if asks {
            let users = folder.path().join("users");
            std::fs::write(&users, USERS).unwrap();
            config["auth"] = json!({ "htpasswd": { "realm": "it", "path": users } });
        }
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut process = Command::new("docker-registry")
            .args(["serve", path.to_str().unwrap()])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let listens = lines.any(|line| line.is_ok_and(|line| line.contains("listening on")));
        assert!(listens, "the registry has ended");
        // Nobody would read the rest, and it must not wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self {
            process,
            folder,
            port,
        })
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}/team/it", self.port)
    }

    /// Pushes an image, under a tag; its digest.
    fn push(&self, image: &Image, tag: &str, auth: &RegistryAuth) -> String {
        let manifest = blob(image, &index(image)["manifests"][0]);
        let document: Value = serde_json::from_slice(&manifest).unwrap();
        let layers = document["layers"].as_array().unwrap();
        let parts = layers.iter().chain([&document["config"]]);
        let blobs = parts.map(|part| (blob(image, part), part["digest"].as_str().unwrap()));
        let blobs: Vec<_> = blobs.collect();
        self.put(tag, auth, &blobs, &manifest, OCI_IMAGE_MEDIA_TYPE)
    }

    /// Pushes an index of images that are there already.
    fn push_index(&self, tag: &str, images: &[(&str, usize, &str)]) {
        let images = images.iter().map(|(digest, size, architecture)| {
            json!({
                "mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            })
        });
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE,
            "manifests": images.collect::<Vec<_>>(),
        });
        let index = index.to_string().into_bytes();
        let auth = RegistryAuth::Anonymous;
        self.put(tag, &auth, &[], &index, OCI_IMAGE_INDEX_MEDIA_TYPE);
    }

    fn put(
        &self,
        tag: &str,
        auth: &RegistryAuth,
        blobs: &[(Vec<u8>, &str)],
        manifest: &[u8],
        media_type: &str,
    ) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        });
        let reference: Reference = format!("{}:{tag}", self.name()).parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let registry = reference.resolve_registry();
            client.store_auth_if_needed(registry, auth).await;
            for (bytes, digest) in blobs {
                let pushed = client.push_blob(&reference, bytes.clone(), digest).await;
                pushed.unwrap();
            }
            let kind = media_type.parse().unwrap();
            let pushed = client.push_manifest_raw(&reference, manifest.to_vec(), kind);
            pushed.await.unwrap();
        });
        format!("sha256:{}", sha256(manifest))
    }
}

fn index(image: &Image) -> Value {
    serde_json::from_slice(&std::fs::read(image.layout().join("index.json")).unwrap()).unwrap()
}

fn blob(image: &Image, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let name = digest.strip_prefix("sha256:").unwrap();
    std::fs::read(image.layout().join("blobs/sha256").join(name)).unwrap()
}

/// Deploys what a registry has; what is printed, or the error.
fn deploy(node: &Node, image: &Image, name: &str, more: &[&str]) -> Result<String, String> {
    image.manifest(&format!(
        "name = \"it\"\nartifact = \"oci://{name}\"\nruntime = \"container\"\n"
    ));
    let nothing = image.folder().join("nothing");
    deploy_as(node, image.folder(), more, &nothing)
}

fn deploy_as(node: &Node, path: &Path, more: &[&str], logins: &Path) -> Result<String, String> {
    let ran = Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(["deploy", path.to_str().unwrap()])
        .args(["--node", &format!("http://127.0.0.1:{}", node.port)])
        .args(more)
        .env("DOCKER_CONFIG", logins)
        .env("REGISTRY_AUTH_FILE", logins.join("none.json"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match ran.status.success() {
        true => Ok(text(ran.stdout) + &text(ran.stderr)),
        false => Err(text(ran.stderr)),
    }
}

#[test]
fn an_image_comes_from_a_registry_by_tag_and_by_digest() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let node = Node::start(&[]);
    let image = Image::handler(COUNTER);
    let anybody = RegistryAuth::Anonymous;
    let digest = registry.push(&image, "stable", &anybody);
    let tagged = format!("{}:stable", registry.name());
    let by_digest = format!("{}@{digest}", registry.name());
    let told = deploy(&node, &image, &tagged, &[]).unwrap();
    assert!(told.contains(&by_digest), "{told}");
    assert_eq!(node.invoke("it/a", "2"), "2");
    assert_eq!(node.invoke("it/a", "2"), "4");
    // What is deployed has not changed, whatever it is called; the manifest has.
    let told = deploy(&node, &image, &by_digest, &[]).unwrap();
    assert!(!told.contains("uploading"), "{told}");
    let told = deploy(&node, &image, &by_digest, &[]).unwrap();
    assert!(told.contains("nothing changed"), "{told}");
    // The tag moves on, the digest does not.
    let other = Image::handler(&COUNTER.replace("int(request.body)", "10 * int(request.body)"));
    registry.push(&other, "stable", &anybody);
    deploy(&node, &image, &by_digest, &[]).unwrap();
    assert_eq!(node.invoke("it/a", "2"), "6");
    deploy(&node, &image, &tagged, &[]).unwrap();
    assert_eq!(node.invoke("it/a", "2"), "26");
}

#[test]
fn an_index_has_an_image_for_each_kind_of_machine() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let node = Node::start(&[]);
    let image = Image::handler(COUNTER);
    let digest = registry.push(&image, "own", &RegistryAuth::Anonymous);
    let size = blob(&image, &index(&image)["manifests"][0]).len();
    let own = architecture();
    registry.push_index("all", &[(&digest, size, "vax"), (&digest, size, own)]);
    registry.push_index("others", &[(&digest, size, "vax")]);
    let name = |tag: &str| format!("{}:{tag}", registry.name());
    deploy(&node, &image, &name("all"), &[]).unwrap();
    assert_eq!(node.invoke("it/a", "2"), "2");
    let error = deploy(&node, &image, &name("others"), &[]).unwrap_err();
    assert!(error.contains("but for linux/vax"), "{error}");
    // What an index says of an image has to be true.
    let wrong = ["--platform", "linux/vax"];
    let error = deploy(&node, &image, &name("others"), &wrong).unwrap_err();
    assert!(error.contains(&format!("is for linux/{own}")), "{error}");
}

#[test]
fn a_registry_that_asks_who_it_is_gets_what_docker_login_keeps() {
    let Some(registry) = Registry::start(true) else {
        return;
    };
    let node = Node::start(&[]);
    let image = Image::handler(COUNTER);
    let someone = RegistryAuth::Basic("someone".to_owned(), "secret".to_owned());
    registry.push(&image, "it", &someone);
    let name = format!("{}:it", registry.name());
    let error = deploy(&node, &image, &name, &[]).unwrap_err();
    assert!(error.contains("docker login 127.0.0.1"), "{error}");
    let logins = tempfile::tempdir().unwrap();
    let host = format!("127.0.0.1:{}", registry.port);
    // "someone:secret"
    let login = json!({ "auths": { host: { "auth": "c29tZW9uZTpzZWNyZXQ=" } } });
    std::fs::write(logins.path().join("config.json"), login.to_string()).unwrap();
    deploy_as(&node, image.folder(), &[], logins.path()).unwrap();
    assert_eq!(node.invoke("it/a", "2"), "2");
}

#[test]
fn what_is_not_there_or_not_what_it_says_is_not_deployed() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let node = Node::start(&[]);
    let image = Image::handler(COUNTER);
    let digest = registry.push(&image, "it", &RegistryAuth::Anonymous);
    let name = registry.name();
    let refused = |name: String, says: &str| {
        let error = deploy(&node, &image, &name, &[]).unwrap_err();
        assert!(error.contains(says), "{name}: {error}");
    };
    refused(format!("{name}:other"), "correct its name, tag or digest");
    let absent = "0".repeat(64);
    refused(
        format!("{name}@sha256:{absent}"),
        "correct its name, tag or digest",
    );
    refused("UPPER CASE".to_owned(), "names no image");
    let nobody = free_ports(1)[0];
    refused(format!("127.0.0.1:{nobody}/it:it"), "can be reached");
    // Somebody has changed a layer in the registry's storage.
    let manifest: Value =
        serde_json::from_slice(&blob(&image, &index(&image)["manifests"][0])).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let hex = layer.strip_prefix("sha256:").unwrap();
    let blobs = registry.folder.path().join("data/docker/registry/v2/blobs");
    let path = blobs.join("sha256").join(&hex[..2]).join(hex).join("data");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    refused(format!("{name}@{digest}"), layer);
    assert_eq!(node.request("POST", "/fn/it/a", &[], b"1").status, 404);
}
