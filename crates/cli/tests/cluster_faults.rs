//! Nodes that should not be let in, and peers that behave badly.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use common::cluster::Cluster;
use fulmar_cluster::wire;
use fulmar_model::{FunctionName, SessionName};
use fulmar_state::record::{Address, MessageRecord, Record, StoredRequest};

/// Runs a command that succeeds, in a folder.
fn fulmar(folder: &Path, args: &[&str]) {
    let ran = Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
}

/// A copy of a folder.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(copied.success());
}

/// The configuration of a node with one thing replaced by another, beside it.
fn changed(config: &Path, name: &str, changes: &[(&str, &str)]) -> std::path::PathBuf {
    let mut text = std::fs::read_to_string(config).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in {text}");
        text = text.replace(from, to);
    }
    let path = config.with_file_name(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_second_node_with_the_same_name_is_told_where_the_first_one_is() {
    let cluster = Cluster::start(2);
    let (peer, http) = (
        cluster.peer_port(1).to_string(),
        cluster.nodes[1].port.to_string(),
    );
    let config = changed(
        &cluster.config(1),
        "again.toml",
        &[("/n2\"", "/again\""), (&http, "0"), (&peer, "0")],
    );
    let said = Cluster::start_in_vain(&config);
    assert!(
        said.contains("the name n2 belongs to another node"),
        "{said}"
    );
    assert!(said.contains(&format!("127.0.0.1:{peer}")), "{said}");
    assert!(said.contains("fulmar nodes forget n2"), "{said}");
    // With a name of its own it is welcome.
    let config = changed(&config, "other.toml", &[("\"n2\"", "\"n4\"")]);
    let other = Cluster::of_files(&[config]);
    other.nodes[0].eventually("all see each other", |node| {
        let listed = node.get("/admin/nodes").json();
        let nodes = listed["nodes"].as_array().unwrap();
        nodes.len() == 3 && nodes.iter().all(|node| node["reached"] == true)
    });
    // It is not forgotten while it runs.
    let forget =
        |name: &str| cluster.nodes[0].request("DELETE", &format!("/admin/nodes/{name}"), &[], b"");
    forget("n4").expect_problem(409, "node-in-use");
    forget("n9").expect_problem(404, "node-not-found");
    drop(other);
    cluster.nodes[0].eventually("its lease runs out and it is forgotten", |_| {
        forget("n4").status == 204
    });
}

#[test]
fn an_old_copy_of_a_data_directory_is_not_served() {
    let mut cluster = Cluster::start(2);
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[1].invoke("counter/a", "1");
    cluster.nodes[1].stop();
    let data = cluster.nodes[1].data.clone();
    let old = data.with_extension("old");
    copy(&data, &old);
    cluster.nodes[1].start_again();
    cluster.nodes[1].invoke("counter/a", "1");
    cluster.nodes[1].stop();
    std::fs::rename(&data, data.with_extension("newer")).unwrap();
    std::fs::rename(&old, &data).unwrap();
    // Started as often as the other one: only then is it as old as it looks.
    let said = Cluster::start_in_vain(&changed(&cluster.config(1), "n2.toml", &[]));
    assert!(said.contains("it is an old copy"), "{said}");
    std::fs::rename(&data, data.with_extension("refused")).unwrap();
    std::fs::rename(data.with_extension("newer"), &data).unwrap();
    cluster.nodes[1].start_again();
    assert_eq!(cluster.nodes[0].invoke("counter/a", "0"), "2");
}

#[test]
fn a_registry_from_an_old_backup_is_not_believed() {
    let mut cluster = Cluster::start(2);
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[1].stop();
    cluster.nodes[0].stop();
    let data = cluster.nodes[0].data.clone();
    let old = data.with_extension("old");
    copy(&data, &old);
    cluster.nodes[0].start_again();
    cluster.nodes[1].start_again();
    for session in 0..20 {
        cluster.nodes[1].invoke(&format!("counter/s{session}"), "1");
    }
    cluster.nodes[1].stop();
    cluster.nodes[0].stop();
    std::fs::rename(&data, data.with_extension("newer")).unwrap();
    std::fs::rename(&old, &data).unwrap();
    cluster.nodes[0].start_again();
    let said = Cluster::start_in_vain(&cluster.config(1));
    assert!(said.contains("it was restored from a backup"), "{said}");
}

#[test]
fn peers_that_speak_garbage_change_nothing() {
    let cluster = Cluster::start(2);
    cluster.nodes[0].deploy("counter", "counter", "");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        [&preface[..], &[0xff; 64]].concat(),
        [
            &preface[..],
            b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x82",
        ]
        .concat(),
        Vec::new(),
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(("127.0.0.1", cluster.peer_port(1))).unwrap();
        stream.write_all(&bytes).unwrap();
        // Whatever it says, if it has not hung up already: it ends.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "1");
    assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "2");
}

/// A machine whose clock is wrong by more than idempotency records are kept forgets none early, nor do others forget
/// those that it made.
#[test]
fn clocks_that_are_days_apart_forget_nothing() {
    for clock in ["+50h", "-50h"] {
        let mut cluster = Cluster::start(2);
        cluster.nodes[0].deploy("counter", "counter", "");
        let node = &mut cluster.nodes[1];
        node.stop();
        node.set_environment("LD_PRELOAD", &common::faketime());
        node.set_environment("FAKETIME", clock);
        node.set_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        node.start_again();
        let count = |at: usize, path: &str| {
            let node: &common::Node = &cluster.nodes[at];
            let headers = [("idempotency-key", "k")];
            node.request("POST", &format!("/fn/counter/{path}"), &headers, b"1")
                .text()
        };
        let go = |path: &str, to: &str| {
            let body = serde_json::json!({ "function": "counter", "session": path, "to": to });
            let body = body.to_string();
            let moved = cluster.nodes[0].request("POST", "/admin/migrations", &[], body.as_bytes());
            assert_eq!(moved.status, 200, "{}", moved.text());
        };
        for (at, path) in [(0, "made-right"), (1, "made-wrong")] {
            assert_eq!(count(at, path), "1");
            for to in ["n1", "n2", "n1"] {
                go(path, to);
                assert_eq!(count(0, path), "1", "{clock} {path}");
            }
        }
    }
}

/// A caller says which protocol it speaks, with every call.
#[test]
fn a_peer_of_an_older_protocol_is_told_what_is_spoken_here() {
    let cluster = Cluster::start(1);
    let address = format!("http://127.0.0.1:{}", cluster.peer_port(0));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hello = |protocol: &str| {
        let mut request = tonic::Request::new(wire::HelloRequest::default());
        let metadata = request.metadata_mut();
        metadata.insert(wire::NODE, "n1".parse().unwrap());
        metadata.insert(wire::CALLER_PROTOCOL, protocol.parse().unwrap());
        runtime.block_on(async {
            let client = wire::peer_client::PeerClient::connect(address.clone()).await;
            client.unwrap().hello(request).await
        })
    };
    let spoken = hello(&wire::PROTOCOL.to_string()).unwrap().into_inner();
    assert_eq!(spoken.protocol, wire::PROTOCOL);
    let older = hello(&(wire::OLDEST_PROTOCOL - 1).to_string()).unwrap_err();
    assert_eq!(older.code(), tonic::Code::FailedPrecondition);
    assert!(older.message().contains("upgrade the older one"), "{older}");
    let nonsense = hello("latest").unwrap_err();
    assert_eq!(nonsense.code(), tonic::Code::InvalidArgument);
}

/// A delivery that was long on its way is refused when its receiver has been elsewhere since: it may have got the message
/// there.
#[test]
fn what_was_sent_to_an_earlier_home_is_not_delivered_late() {
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    n1.deploy("counter", "counter", "");
    n1.invoke("counter/a", "1");
    let shown = || n2.get("/admin/sessions/counter/a").json();
    let epoch = || shown()["epoch"].as_u64().unwrap();
    let first = epoch();
    for to in ["n2", "n1"] {
        let wanted = serde_json::json!({ "function": "counter", "session": "a", "to": to });
        let body = wanted.to_string();
        let moved = n2.request("POST", "/admin/migrations", &[], body.as_bytes());
        assert_eq!(moved.status, 200, "{}", moved.text());
    }
    let now = epoch();
    assert!(now > first);
    let node = format!("http://127.0.0.1:{}", cluster.peer_port(0));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let deliver = |key: u8, epoch: u64| {
        let address = |session: &str| Address {
            function: FunctionName::new("counter").unwrap(),
            session: Some(SessionName::new(session).unwrap()),
        };
        let message = MessageRecord {
            from: Some(address("b")),
            to: address("a"),
            request: StoredRequest {
                method: "POST".into(),
                path: "/".into(),
                headers: Vec::new(),
                body: b"10".to_vec(),
            },
            invocation: None,
            idempotency_key: None,
            attempts: 0,
            error: String::new(),
            at_unix_ms: 0,
        };
        let mut request = tonic::Request::new(wire::DeliverRequest {
            instance: "another-directory".into(),
            key: vec![key; 12].into(),
            settled_below: vec![0; 12].into(),
            message: message.encode().into(),
            epoch,
            ..Default::default()
        });
        let metadata = request.metadata_mut();
        metadata.insert(wire::NODE, "n2".parse().unwrap());
        let protocol = wire::PROTOCOL.to_string();
        metadata.insert(wire::CALLER_PROTOCOL, protocol.parse().unwrap());
        let reply = runtime.block_on(async {
            let client = wire::peer_client::PeerClient::connect(node.clone()).await;
            client.unwrap().deliver(request).await
        });
        String::from_utf8(reply.unwrap().into_inner().problem.to_vec()).unwrap()
    };
    let late = deliver(1, first);
    assert!(late.contains("session-moved"), "{late}");
    assert_eq!(n1.invoke("counter/a", "0"), "1");
    assert_eq!(deliver(1, now), "");
    assert_eq!(n1.invoke("counter/a", "0"), "11");
    // The same one again, and one of a sender that does not tell.
    assert_eq!(deliver(1, now), "");
    assert_eq!(deliver(2, 0), "");
    assert_eq!(n1.invoke("counter/a", "0"), "21");
}

#[test]
fn a_certificate_of_another_authority_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fulmar = |args: &[&str]| fulmar(folder.path(), args);
    for (dir, node) in [("ca", "n1"), ("other", "n2")] {
        fulmar(&["ca", "init", "--dir", dir]);
        fulmar(&["ca", "issue", node, "--name", "127.0.0.1", "--dir", dir]);
    }
    let ports = common::cluster::free_ports(4);
    let write = |at: usize, ca: &str, peers: &str| {
        let text = format!(
            "name = \"n{at}\"\nsite = \"here\"\ndata = \"n{at}-data\"\n\
             [listen]\nhttp = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"\n\
             [registry]\nembedded = \"n1\"\n[peers]\n{peers}\n\
             [tls]\nca = \"{ca}/ca.crt\"\ncert = \"{ca}/n{at}.crt\"\nkey = \"{ca}/n{at}.key\"\n",
            ports[2 * at - 2],
            ports[2 * at - 1]
        );
        let path = folder.path().join(format!("n{at}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let known = format!("n1 = \"127.0.0.1:{}\"", ports[1]);
    let first = write(1, "ca", "");
    let second = write(2, "other", &known);
    let _cluster = Cluster::of_files(std::slice::from_ref(&first));
    let mut stranger = Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(["node", "--config"])
        .arg(&second)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(stranger.stderr.take().unwrap()).lines();
    let said = lines
        .map(Result::unwrap)
        .find(|line| line.contains("waiting for the registry"));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(said.as_ref().unwrap().contains("certificate"), "{said:?}");

    // A certificate for another node is noticed before anything is said with it.
    let text = std::fs::read_to_string(&second).unwrap();
    std::fs::write(
        &second,
        text.replace("other/", "ca/").replace("ca/n2", "ca/n1"),
    )
    .unwrap();
    let said = Cluster::start_in_vain(&second);
    assert!(said.contains("is not for the node n2"), "{said}");
}

/// etcd with certificates, which asks for those of whoever speaks to it.
#[test]
fn an_etcd_with_certificates_is_spoken_to_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let fulmar = |args: &[&str]| fulmar(folder.path(), args);
    fulmar(&["ca", "init"]);
    for name in ["etcd", "n1"] {
        fulmar(&["ca", "issue", name, "--name", "127.0.0.1"]);
    }
    let ports = common::cluster::free_ports(4);
    let url = format!("https://127.0.0.1:{}", ports[2]);
    let mut etcd = Command::new("etcd")
        .args(["--data-dir", "etcd", "--client-cert-auth"])
        .args(["--cert-file", "ca/etcd.crt", "--key-file", "ca/etcd.key"])
        .args(["--trusted-ca-file", "ca/ca.crt"])
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args([
            "--listen-peer-urls",
            &format!("http://127.0.0.1:{}", ports[3]),
        ])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let write = |registry: &str| {
        let text = format!(
            "name = \"n1\"\nsite = \"here\"\ndata = \"data\"\n\
             [listen]\nhttp = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"\n\
             [registry]\netcd = [{url:?}]\n{registry}",
            ports[0], ports[1]
        );
        let path = folder.path().join("n1.toml");
        std::fs::write(&path, text).unwrap();
        path
    };
    let said = Cluster::start_in_vain(&write(""));
    assert!(said.contains("needs `ca`"), "{said}");
    let config = write("ca = \"ca/ca.crt\"\ncert = \"ca/n1.crt\"\nkey = \"ca/n1.key\"\n");
    let cluster = Cluster::of_files(std::slice::from_ref(&config));
    cluster.nodes[0].deploy("counter", "counter", "");
    assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "1");
    drop(cluster);
    etcd.kill().unwrap();
    etcd.wait().unwrap();
}

#[test]
fn a_session_is_not_lost_on_a_node_without_room() {
    let cluster = Cluster::start_with(2, |at| match at {
        1 => "[limits]\nreserve_disk = \"1000TiB\"\n".to_owned(),
        _ => String::new(),
    });
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[0].invoke("counter/a", "1");
    cluster.nodes[1].eventually("it has noticed", |node| node.get("/readyz").status == 507);
    let wanted = br#"{"function":"counter","session":"a","to":"n2"}"#;
    let moved = cluster.nodes[0].request("POST", "/admin/migrations", &[], wanted);
    moved.expect_problem(409, "migration-failed");
    assert!(moved.text().contains("stays here"), "{}", moved.text());
    assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "2");
    assert_eq!(
        cluster.nodes[1].invoke("counter/a", "1"),
        "3",
        "it is found from there as well"
    );
}
