//! Namespaces: what their functions share, what they do not see of each other, and what they may have.

#![allow(clippy::unwrap_used)]

mod common;

use common::cluster::Cluster;
use common::{Node, fulmar, guest};
use serde_json::{Value, json};

fn quota(node: &Node, namespace: &str, quota: &Value) {
    let path = format!("/admin/namespaces/{namespace}");
    let reply = node.request("PUT", &path, &[], quota.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// A node with the same function in two namespaces and in none.
fn with_three() -> Node {
    let node = Node::start(&[]);
    for name in ["shop.faults", "fleet.faults", "faults"] {
        node.deploy(name, "guest-faults", "");
    }
    node
}

#[test]
fn functions_of_two_namespaces_share_nothing() {
    let mut node = with_three();
    assert_eq!(node.invoke("shop.faults/a", "count 5"), "5");
    assert_eq!(node.invoke("fleet.faults/a", "count 1"), "1");
    assert_eq!(node.invoke("faults/a", "counted"), "0");
    assert_eq!(node.invoke("shop.faults", "shared-increment b k 7"), "7");
    assert_eq!(node.invoke("fleet.faults", "shared-get b k"), "absent");
    assert_eq!(node.invoke("faults", "shared-increment b k 1"), "1");
    // A message goes to the function of that name in the same namespace, and to no other.
    node.invoke("shop.faults/a", "send faults b 2 count 1");
    node.eventually("the messages arrive", |node| {
        node.invoke("shop.faults/b", "counted") == "2"
    });
    for there in ["fleet.faults/b", "faults/b"] {
        assert_eq!(node.invoke(there, "counted"), "0", "{there}");
    }
    for (from, to) in [
        ("shop.faults/a", "fleet.faults"),
        ("faults/a", "shop.faults"),
        ("shop.faults/a", "default.faults"),
    ] {
        let sent = format!("send {to} b 1 count 1");
        let reply = node.request("POST", &format!("/fn/{from}"), &[], sent.as_bytes());
        assert_eq!(reply.status, 500, "{from} {to}: {}", reply.text());
        assert!(reply.text().contains("namespace"), "{}", reply.text());
    }
    node.crash_and_restart();
    assert_eq!(node.invoke("shop.faults/a", "counted"), "5");
    assert_eq!(node.invoke("shop.faults", "shared-get b k"), "7");
    assert_eq!(node.invoke("faults", "shared-get b k"), "1");
}

#[test]
fn the_command_line_works_in_one_namespace() {
    let node = Node::start(&[]);
    let in_shop = |args: &[&str]| fulmar(&node, &[args, &["--namespace", "shop"]].concat());
    let component = guest("counter");
    let component = component.to_str().unwrap();
    in_shop(&["deploy", component]).unwrap();
    assert_eq!(in_shop(&["invoke", "counter", "a"]).unwrap(), "1");
    assert_eq!(
        fulmar(&node, &["invoke", "shop.counter", "a"]).unwrap(),
        "2"
    );
    let refused = fulmar(&node, &["invoke", "counter", "a"]).unwrap_err();
    assert!(refused.contains("error[function-not-found]"), "{refused}");
    let shown = in_shop(&["sessions", "show", "counter", "a"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["function"], "shop.counter");
    let listed = in_shop(&["sessions", "ls", "counter"]).unwrap();
    assert!(listed.contains("shop.counter"), "{listed}");
    // Shared buckets, by the same name in two namespaces.
    in_shop(&["state", "set", "shared/b", "k", "of the shop"]).unwrap();
    fulmar(&node, &["state", "set", "shared/b", "k", "of nobody"]).unwrap();
    assert_eq!(
        in_shop(&["state", "get", "shared/b", "k"]).unwrap(),
        "of the shop"
    );
    assert_eq!(
        fulmar(&node, &["state", "get", "shared/b", "k"]).unwrap(),
        "of nobody"
    );
    assert_eq!(in_shop(&["state", "ls"]).unwrap(), "shared/b");
    // What is exported of both is imported into both.
    let exported = fulmar(&node, &["state", "export"]).unwrap();
    let other = Node::start(&[]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &exported).unwrap();
    other.deploy("shop.counter", "counter", "");
    fulmar(&other, &["state", "import", file.path().to_str().unwrap()]).unwrap();
    assert_eq!(other.invoke("shop.counter/a", ""), "3");
    let got = fulmar(
        &other,
        &["state", "get", "shared/b", "k", "--namespace", "shop"],
    );
    assert_eq!(got.unwrap(), "of the shop");
    // A manifest of another namespace is not quietly deployed there.
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!("name = \"fleet.counter\"\nartifact = {component:?}\n");
    std::fs::write(folder.path().join("fulmar.toml"), manifest).unwrap();
    let refused = in_shop(&["deploy", folder.path().to_str().unwrap()]).unwrap_err();
    assert!(refused.contains("not of shop"), "{refused}");
    for bad in ["default.counter", "a.b.c", "shop.", ".counter"] {
        let wasm = std::fs::read(component).unwrap();
        node.try_deploy(bad, &wasm, "")
            .expect_problem(422, "manifest-invalid");
    }
}

#[test]
fn a_token_of_a_namespace_sees_nothing_of_others() {
    let node = with_three();
    node.invoke("fleet.faults/a", "count 3");
    let admin = fulmar(
        &node,
        &["token", "create", "--scope", "admin", "--scope", "invoke"],
    )
    .unwrap();
    let with = |token: &str, args: &[&str]| fulmar(&node, &[args, &["--token", token]].concat());
    let every = ["--scope", "admin", "--scope", "deploy", "--scope", "invoke"];
    let create = [&["token", "create", "--namespace", "shop"], &every[..]].concat();
    let shop = with(&admin, &create).unwrap();
    let ask = |token: &str, method: &str, path: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("prefer", "respond-async")];
        // What only nodes may say does not help.
        let headers = [&headers[..], &[("fulmar-functions", "*")]].concat();
        node.request(method, path, &headers, b"count 1")
    };
    let own = ask(&shop, "POST", "/fn/shop.faults/a");
    assert_eq!(own.status, 202, "{}", own.text());
    for path in [
        "/fn/fleet.faults/a",
        "/fn/fleet%2Efaults/a",
        "/fn/faults/a",
        "/fn/shop/a",
        "/admin/sessions/fleet.faults/a",
        "/admin/sessions/fleet%2Efaults/a",
        "/admin/sessions",
        "/admin/sessions?function=fleet.faults",
        "/admin/state/shared/b/keys",
        "/admin/state/namespace/fleet/b/keys",
        "/admin/state-export",
        "/admin/functions/fleet%2Efaults",
        "/admin/logs/fleet.faults",
        "/admin/namespaces/fleet",
        "/admin/tokens",
        "/admin/node",
        "/admin/accesses",
    ] {
        let method = if path.starts_with("/fn") {
            "POST"
        } else {
            "GET"
        };
        ask(&shop, method, path).expect_problem(403, "scope-missing");
    }
    let listed = ask(&shop, "GET", "/admin/functions").json();
    let names: Vec<&Value> = listed["functions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|function| &function["name"])
        .collect();
    assert_eq!(names, [&json!("shop.faults")]);
    for path in [
        "/admin/sessions?function=shop.faults",
        "/admin/state/namespace/shop/b/keys",
        "/admin/namespaces/shop",
        "/admin/functions/shop.faults",
    ] {
        let reply = ask(&shop, "GET", path);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    // An asynchronous invocation of another namespace is as if it were not there.
    let accepted = ask(&admin, "POST", "/fn/fleet.faults/b");
    let location = accepted.header("location").unwrap().to_owned();
    let seen = ask(&admin, "GET", &location);
    assert_eq!(seen.status, 200, "{}", seen.text());
    ask(&shop, "GET", &location).expect_problem(404, "invocation-not-found");
    let location = own.header("location").unwrap();
    assert_eq!(ask(&shop, "GET", location).status, 200);
    // It makes no tokens, and counts for no admin of the node.
    let made = with(&shop, &["token", "create", "--scope", "invoke"]).unwrap_err();
    assert!(made.contains("error[scope-missing]"), "{made}");
    let id = admin.split('_').nth(1).unwrap();
    let revoked = with(&admin, &["token", "revoke", id]).unwrap_err();
    assert!(revoked.contains("error[tokens-in-use]"), "{revoked}");
}

#[test]
fn quotas_are_kept() {
    let mut node = with_three();
    quota(&node, "shop", &json!({ "max_functions": 2 }));
    node.deploy("shop.second", "counter", "");
    let wasm = std::fs::read(guest("counter")).unwrap();
    let third = |node: &Node| node.try_deploy("shop.third", &wasm, "");
    third(&node).expect_problem(429, "quota-exceeded");
    node.deploy("shop.second", "counter", "durability = \"memory\"");
    node.deploy("fleet.third", "counter", "");
    // They outlast a crash.
    node.crash_and_restart();
    third(&node).expect_problem(429, "quota-exceeded");
    let refused = node.request(
        "PUT",
        "/admin/namespaces/shop",
        &[],
        b"{\"max_sessions\": 1}",
    );
    refused.expect_problem(400, "bad-request");
    let refused = node.request("PUT", "/admin/namespaces/a.b", &[], b"{}");
    refused.expect_problem(400, "bad-request");

    quota(&node, "shop", &json!({ "max_rate": 5 }));
    let allowed = |name: &str| {
        let path = format!("/fn/{name}/a");
        let answered: Vec<u16> = (0..40)
            .map(|_| node.request("POST", &path, &[], b"count 1").status)
            .collect();
        assert!(
            answered.iter().all(|status| [200, 429].contains(status)),
            "{answered:?}"
        );
        answered.iter().filter(|status| **status == 200).count()
    };
    assert!((5..40).contains(&allowed("shop.faults")));
    assert_eq!(allowed("fleet.faults"), 40);

    quota(&node, "shop", &json!({ "max_concurrency": 2 }));
    let answered = std::thread::scope(|scope| {
        let slow = |session: usize| {
            let path = format!("/fn/shop.faults/slow-{session}");
            node.request("POST", &path, &[], b"sleep 500").status
        };
        let running: Vec<_> = (0..8)
            .map(|session| scope.spawn(move || slow(session)))
            .collect();
        let answered = running.into_iter().map(|running| running.join().unwrap());
        answered.collect::<Vec<_>>()
    });
    let refused = answered.iter().filter(|status| **status == 429).count();
    assert!((1..8).contains(&refused), "{answered:?}");
    assert_eq!(node.invoke("shop.faults/a", "echo again"), "again");

    let used = |node: &Node| node.get("/admin/namespaces/shop").json()["state_bytes"].as_u64();
    quota(&node, "shop", &json!({ "max_state": "100KiB" }));
    node.invoke("fleet.faults/a", "record-padded 200000");
    node.invoke("shop.faults/a", "record-padded 200000");
    node.eventually("the state is measured", |node| used(node) > Some(200_000));
    node.invoke_fails("shop.faults/b", "count 1", 507, "namespace-full");
    node.invoke("fleet.faults/b", "count 1");
    assert_eq!(used(&node).unwrap() / 100_000, 2, "only its own");
    let removed = node.request("DELETE", "/admin/sessions/shop.faults/a", &[], b"");
    assert_eq!(removed.status, 204);
    node.eventually("there is room again", |node| used(node) < Some(100_000));
    node.invoke("shop.faults/b", "count 1");
    assert_eq!(
        fulmar(&node, &["namespaces", "rm", "shop"]),
        Ok(String::new())
    );
    assert_eq!(node.get("/admin/namespaces/shop").json().get("quota"), None);
}

#[test]
fn namespaces_and_quotas_are_the_same_on_all_nodes() {
    let mut cluster = Cluster::start(2);
    cluster.nodes[0].deploy("shop.faults", "guest-faults", "");
    let set = fulmar(
        &cluster.nodes[0],
        &["namespaces", "set", "shop", "--max-functions", "1"],
    );
    set.unwrap();
    assert_eq!(cluster.nodes[1].invoke("shop.faults/a", "count 2"), "2");
    assert_eq!(cluster.nodes[0].invoke("shop.faults/a", "count 2"), "4");
    cluster.nodes[1].invoke("shop.faults/a", "send faults b 3 count 1");
    cluster.nodes[0].eventually("the messages arrive", |node| {
        node.invoke("shop.faults/b", "counted") == "3"
    });
    let wasm = std::fs::read(guest("counter")).unwrap();
    let second = cluster.nodes[1].try_deploy("shop.second", &wasm, "");
    second.expect_problem(429, "quota-exceeded");
    let listed = fulmar(&cluster.nodes[1], &["namespaces", "ls", "--json"]).unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["name"], "shop");
    assert_eq!(listed[0]["quota"]["max_functions"], 1);
    // Known as well while the registry is away.
    cluster.nodes[0].crash();
    cluster.nodes[1].restart();
    let shown = cluster.nodes[1].get("/admin/namespaces/shop").json();
    assert_eq!(shown["quota"]["max_functions"], 1);
}
