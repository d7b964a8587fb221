//! Some simulated nodes and what they run on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fulmar_cluster::{Network, NodeConfig};
use fulmar_node::surroundings::{self, Surroundings};
use fulmar_node::{Node, NodeOptions};
use fulmar_state::objects::Objects;
use fulmar_worker::{Runtime, RuntimeOptions};
use object_store::memory::InMemory;
use sha2::{Digest, Sha256};
use turmoil::Sim;

use crate::world::{self, Asleep, Bucket, Disk, Wires};

pub(crate) const NODES: usize = 3;
/// Where the clients are.
pub(crate) const CLIENTS: &str = "clients";
/// Where nodes listen for clients.
pub(crate) const HTTP: u16 = 80;

/// A node's name, on the network as well.
pub(crate) fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// Puts a component and what it compiles to into a folder, as nodes keep them; its digest.
pub(crate) fn compile(component: &[u8], folder: &Path) -> String {
    let runtime = Runtime::new(&RuntimeOptions::default()).unwrap();
    let digest: String = Sha256::digest(component)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let compiled = runtime.compile(component).unwrap();
    let file = format!("{digest}.{}.cwasm", runtime.compatibility());
    std::fs::write(folder.join(file), compiled.bytes).unwrap();
    std::fs::write(folder.join(format!("{digest}.wasm")), component).unwrap();
    digest
}

/// What stays when nodes go.
pub(crate) struct Cluster {
    folder: PathBuf,
    disks: [Arc<Disk>; NODES],
    objects: Arc<InMemory>,
    /// Whether each node reaches the object store.
    reaches: [Arc<AtomicBool>; NODES],
    asleep: [Arc<Asleep>; NODES],
    runtime: Runtime,
    /// Whether sessions move by themselves as well.
    follows: bool,
}

impl Cluster {
    /// Nothing on any disk but the artefacts of a folder.
    pub(crate) fn new(folder: &Path, artifacts: &Path, follows: bool) -> Self {
        for node in 0..NODES {
            let kept = folder.join(name(node)).join("artifacts");
            std::fs::create_dir_all(&kept).unwrap();
            for file in std::fs::read_dir(artifacts).unwrap() {
                let file = file.unwrap();
                std::fs::hard_link(file.path(), kept.join(file.file_name())).unwrap();
            }
        }
        let runtime = Runtime::new(&RuntimeOptions {
            max_workers: 64,
            // No function of a simulation runs for long; without ticks it is the same each time.
            tick: Duration::from_secs(3600),
            // Nor beside the thread that simulates.
            computing_threads: 0,
        });
        let runtime = runtime.unwrap();
        // Whoever ends its clock would wait for a tick.
        std::mem::forget(runtime.clone());
        Self {
            folder: folder.to_owned(),
            disks: Default::default(),
            objects: Arc::default(),
            reaches: std::array::from_fn(|_| Arc::new(AtomicBool::new(true))),
            asleep: Default::default(),
            runtime,
            follows,
        }
    }

    fn options(&self, node: usize) -> NodeOptions {
        let follows = if self.follows { "on" } else { "off" };
        let data = self.folder.join(name(node));
        let config = self.folder.join(format!("{}.toml", name(node)));
        let known = match node {
            0 => "",
            _ => "n1 = \"n1:7401\"\n",
        };
        let text = format!(
            "name = \"n{0}\"\nsite = \"here\"\ndata = {data:?}\ninsecure = true\n\
             follow_clients = {follows:?}\nplacement = \"off\"\nspeed_up = 1.0\n\
             [listen]\nhttp = \"0.0.0.0:{HTTP}\"\npeer = \"0.0.0.0:7401\"\n\
             [advertise]\npeer = \"n{0}:7401\"\nhttp = \"http://n{0}\"\n\
             [registry]\nembedded = \"n1\"\nlease = \"3s\"\n[peers]\n{known}",
            node + 1
        );
        std::fs::write(&config, text).unwrap();
        let objects = Bucket {
            content: self.objects.clone(),
            is_there: self.reaches[node].clone(),
            asleep: self.asleep[node].clone(),
        };
        let asleep = self.asleep[node].clone();
        NodeOptions {
            cluster: Some(NodeConfig::read(&config).unwrap()),
            max_workers: 64,
            surroundings: Surroundings {
                network: Network::Simulated(Arc::new(Wires)),
                disk: Some(surroundings::Disk {
                    engine: self.disks[node].clone(),
                    takes: Arc::new(move || asleep.left() + world::while_it_takes(100..4000)),
                }),
                objects: Some(Objects::over(Arc::new(objects))),
                runtime: Some(self.runtime.clone()),
            },
            ..NodeOptions::default()
        }
    }

    /// Starts the nodes.
    pub(crate) fn start(&self, sim: &mut Sim<'_>) {
        for node in 0..NODES {
            let options = self.options(node);
            let data = self.folder.join(name(node));
            sim.host(name(node), move || {
                let (data, options) = (data.clone(), options.clone());
                async move {
                    let listen = ([0, 0, 0, 0], HTTP).into();
                    let node = Node::start(&data, listen, options).await?;
                    std::future::pending::<()>().await;
                    drop(node);
                    Ok(())
                }
            });
        }
    }

    /// Ends a node; its machine as well, if the power is gone.
    pub(crate) fn kill(&self, sim: &mut Sim<'_>, node: usize, power: bool) {
        sim.crash(name(node));
        if power {
            self.disks[node].lose_unsynced();
        }
    }

    /// Nothing comes to a node and nothing leaves it, its disk included, for so long.
    pub(crate) fn sleep(&self, sim: &Sim<'_>, node: usize, until: Duration) {
        self.asleep[node].until(until);
        for other in self.others(node) {
            sim.hold(name(node), other);
        }
    }

    /// What was held back goes on its way.
    pub(crate) fn wake(&self, sim: &Sim<'_>, node: usize) {
        for other in self.others(node) {
            sim.release(name(node), other);
        }
    }

    fn others(&self, node: usize) -> impl Iterator<Item = String> {
        let nodes = (0..NODES).filter(move |other| *other != node).map(name);
        nodes.chain([CLIENTS.to_owned()])
    }

    /// Whether a node reaches the object store from now on.
    pub(crate) fn objects(&self, node: usize, are_there: bool) {
        self.reaches[node].store(are_there, Ordering::Relaxed);
    }
}
