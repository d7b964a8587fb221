use std::io::Write;

use tar::{Builder, EntryType, Header};

use super::*;

fn sha(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// A layer of files, folders (without text) and links (`-> target`).
fn layer(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, text) in entries {
        let mut header = Header::new_ustar();
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(0);
        if let Some(to) = text.strip_prefix("-> ") {
            header.set_entry_type(EntryType::Symlink);
            header.as_old_mut().linkname[..to.len()].copy_from_slice(to.as_bytes());
        } else if let Some(to) = text.strip_prefix("=> ") {
            header.set_entry_type(EntryType::Link);
            header.as_old_mut().linkname[..to.len()].copy_from_slice(to.as_bytes());
        } else if *text == "device" {
            header.set_entry_type(EntryType::Block);
        } else if text.is_empty() {
            header.set_entry_type(EntryType::Directory);
        } else {
            header.set_entry_type(EntryType::Regular);
            header.set_size(text.len() as u64);
            header.set_cksum();
            builder.append(&header, text.as_bytes()).unwrap();
            continue;
        }
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image layout of such layers, as an archive, changed by `spoil` before its index is made.
fn layout(layers: &[Vec<u8>], user: &str, spoil: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let mut blobs: Vec<Vec<u8>> = Vec::new();
    let mut add = |bytes: Vec<u8>, kind: &str| {
        let descriptor = serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": sha(&bytes), "size": bytes.len(),
        });
        blobs.push(bytes);
        descriptor
    };
    let diffs: Vec<String> = layers.iter().map(|layer| sha(layer)).collect();
    let packed: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(layer).unwrap();
            add(packed.finish().unwrap(), "layer.v1.tar+gzip")
        })
        .collect();
    let config = serde_json::json!({
        "config": { "Entrypoint": ["/run"], "Cmd": ["it"], "Env": ["A=b"], "User": user, "WorkingDir": "/work" },
        "rootfs": { "type": "layers", "diff_ids": diffs },
    });
    let config = add(config.to_string().into_bytes(), "config.v1+json");
    let mut manifest =
        serde_json::json!({ "schemaVersion": 2, "config": config, "layers": packed });
    spoil(&mut manifest);
    let other = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:00", "size": 1,
        "platform": { "os": "plan9", "architecture": "amd64" },
    });
    let manifest = add(manifest.to_string().into_bytes(), "manifest.v1+json");
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [other, manifest] });
    let mut files = vec![
        (
            LAYOUT.to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    files.extend(blobs.into_iter().map(|bytes| {
        let name = sha(&bytes).replace("sha256:", "blobs/sha256/");
        (name, bytes)
    }));
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpacked(layers: &[Vec<u8>], user: &str) -> Result<(tempfile::TempDir, Image), ImageError> {
    let outside = tempfile::tempdir().unwrap();
    let tar = layout(layers, user, |_| {});
    assert!(is_image(&tar));
    let result = unpack(&tar, &outside.path().join("in"));
    let beside = std::fs::read_dir(outside.path()).unwrap().count();
    assert_eq!(beside, 1, "nothing is written elsewhere");
    result?;
    let config = std::fs::read(outside.path().join("in").join(CONFIG)).unwrap();
    let image = serde_json::from_slice(&config).unwrap();
    Ok((outside, image))
}

fn refused(layers: &[Vec<u8>]) -> String {
    unpacked(layers, "").unwrap_err().to_string()
}

#[test]
fn layers_lie_over_each_other() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let base = layer(&[
        ("etc", ""),
        ("etc/passwd", "root:x:0:0::/:\nme:x:7:8::/:\n"),
        ("etc/group", "us:x:9:\n"),
        ("usr/bin", ""),
        ("bin", "-> /usr/bin"),
        ("old/a", "a"),
        ("old/b", "b"),
        ("gone", "gone"),
        ("file", "becomes a folder"),
    ]);
    let over = layer(&[
        // Through a link that leads to the root of the image, not of the machine.
        ("bin/tool", "tool"),
        ("same", "=> usr/bin/tool"),
        (".wh.gone", "-"),
        ("old/.wh..wh..opq", "-"),
        ("old/c", "c"),
        ("file/in", "in"),
    ]);
    let layers = [base.clone(), layer(&[("file", "")]), over];
    let (folder, image) = unpacked(&layers, "me:us").unwrap();
    assert_eq!(image.command, ["/run", "it"]);
    assert_eq!((image.user, image.group), (7, 9));
    assert_eq!(
        (&*image.folder, &*image.env),
        ("/work", &["A=b".to_owned()][..])
    );
    let root = folder.path().join("in").join(ROOT);
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(
        (&*read("usr/bin/tool"), &*read("same"), &*read("file/in")),
        ("tool", "tool", "in")
    );
    assert_eq!(read("old/c"), "c");
    assert!(!root.join("gone").exists() && !root.join("old/a").exists());
    assert!(root.join("run/fulmar").is_dir());
    let tool = std::fs::metadata(root.join("usr/bin/tool")).unwrap();
    assert_eq!(
        tool.permissions().mode() & 0o7777,
        0o755,
        "it changes no user"
    );
    if let Some(owner) = Image::owner(0) {
        assert_eq!(tool.uid(), owner);
    }
    let (_, image) = unpacked(&[base], "me").unwrap();
    assert_eq!((image.user, image.group), (7, 8));
}

#[test]
fn what_leads_out_is_refused() {
    for path in ["../out", "/out", "a/../../out"] {
        let error = refused(&[layer(&[(path, "x")])]);
        assert!(error.contains("not below its root"), "{error}");
    }
    // A file through a link that leads out of the image lands in it.
    let through = layer(&[
        ("up", "-> ../../.."),
        ("up/out", "x"),
        ("abs", "-> /"),
        ("abs/out2", "x"),
    ]);
    let (folder, _) = unpacked(&[through], "").unwrap();
    let root = folder.path().join("in").join(ROOT);
    assert!(root.join("out").is_file() && root.join("out2").is_file());
    // Not what its link leads to is written.
    let over = layer(&[("file", "-> /etc/passwd"), ("file", "x")]);
    let (folder, _) = unpacked(&[over], "").unwrap();
    let file = folder.path().join("in").join(ROOT).join("file");
    assert!(!file.is_symlink());
    assert!(refused(&[layer(&[("link", "=> ../../etc/passwd")])]).contains("not there"));
    assert!(refused(&[layer(&[("a/.wh...", "x")])]).contains("hides nothing"));
}

#[test]
fn devices_and_what_is_too_much_are_refused() {
    assert!(refused(&[layer(&[("dev", "device")])]).contains("a device"));
    let mut huge = Header::new_ustar();
    huge.set_entry_type(EntryType::Regular);
    huge.set_path("huge").unwrap();
    huge.set_size(9 << 30);
    huge.set_uid(0);
    huge.set_gid(0);
    huge.set_cksum();
    let error = refused(&[huge.as_bytes().to_vec()]);
    assert!(error.contains("more than"), "{error}");
    // As good as nothing, packed.
    let mut sparse = Header::new_gnu();
    sparse.set_entry_type(EntryType::GNUSparse);
    sparse.set_path("sparse").unwrap();
    sparse.set_size(0);
    sparse.set_mode(0o644);
    sparse.set_uid(0);
    sparse.set_gid(0);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.set_real_size(7 << 30);
    gnu.sparse[0].set_offset(7 << 30);
    gnu.sparse[0].set_length(0);
    sparse.set_cksum();
    let error = refused(&[sparse.as_bytes().to_vec()]);
    assert!(error.contains("kind that images do not have"), "{error}");
}

#[test]
fn what_is_not_what_it_says_is_refused() {
    let refused = |spoil: &dyn Fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        let tar = layout(&[layer(&[("a", "a")])], "", spoil);
        unpack(&tar, &folder.path().join("in"))
            .unwrap_err()
            .to_string()
    };
    let wrong = sha(b"other");
    let missing = refused(&|manifest| manifest["layers"][0]["digest"] = wrong.clone().into());
    assert!(missing.contains("it lacks"), "{missing}");
    let size = refused(&|manifest| manifest["layers"][0]["size"] = 7.into());
    assert!(size.contains("of 7 bytes"), "{size}");
    let config = |manifest: &mut serde_json::Value| {
        manifest["layers"] = serde_json::json!([]);
    };
    assert!(refused(&config).contains("tells of 1"));
    let kind = refused(&|manifest| manifest["layers"][0]["mediaType"] = "a/layer.v1.rar".into());
    assert!(kind.contains("not known"), "{kind}");
    // Another layer than the configuration tells of.
    let mut tar = layout(&[layer(&[("a", "a")])], "", |_| {});
    let at = tar.windows(5).position(|part| part == b"[\"/ru").unwrap();
    tar[at + 2] = b'-';
    let folder = tempfile::tempdir().unwrap();
    let error = unpack(&tar, &folder.path().join("in"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("with the digest"), "{error}");
    let text = unpack(b"", &folder.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("no index.json"), "{text}");
    assert!(refused(&|manifest| manifest["config"] = 1.into()).contains("its manifest"));
    let nobody = unpacked(&[layer(&[("a", "a")])], "nobody").unwrap_err();
    assert!(nobody.to_string().contains("does not know"), "{nobody}");
}
