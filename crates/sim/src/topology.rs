//! Networks of nodes, links and switches: read from files or generated, and the paths in them.
//!
//! Files: `PREFIX.nodes` (`id;name;speed;memory_MB;arch;kind;model`, speed in operations per second),
//! `PREFIX.links` (`id;capacity_Mbps;name;type`) and `PREFIX.edges` (`name neighbour neighbour ...`).
//! Links and switches are vertices too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::Path;

use crate::Error;
use crate::random::Random;

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Operations per second.
    pub speed: f64,
    /// What it is, for example `rpi3b+`.
    pub model: String,
}

/// What one byte needs from a node to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Route {
    /// Seconds per byte: links store and forward, and are not contended for.
    pub seconds_per_byte: f64,
    /// Links passed.
    pub hops: u32,
}

/// Nodes and the routes between every two of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    nodes: Vec<Node>,
    /// From `i` to `j` at `i * nodes + j`.
    routes: Vec<Route>,
}

/// Vertices by number, while routes are looked for.
struct Graph {
    names: BTreeMap<String, usize>,
    /// Capacity in bits per second of those that are links.
    capacity: Vec<Option<f64>>,
    neighbours: Vec<Vec<usize>>,
}

impl Topology {
    /// Nodes in the order of their names; ties between equal nodes go by it.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The route between two nodes, by their places.
    pub fn route(&self, from: usize, to: usize) -> Route {
        self.routes[from * self.nodes.len() + to]
    }

    /// Memory that a topology of so many nodes takes, in bytes: a route between every two.
    pub fn bytes(nodes: f64) -> f64 {
        nodes * nodes * size_of::<Route>() as f64
    }

    /// The node with the smallest worst transfer time to or from any other.
    pub fn centre(&self) -> usize {
        let worst = |at: usize| {
            (0..self.nodes.len())
                .map(|other| {
                    let there = self.route(at, other).seconds_per_byte;
                    there.max(self.route(other, at).seconds_per_byte)
                })
                .fold(0.0, f64::max)
        };
        let all: Vec<f64> = (0..self.nodes.len()).map(worst).collect();
        (0..all.len())
            .min_by(|a, b| all[*a].total_cmp(&all[*b]))
            .unwrap_or(0)
    }

    /// Reads `PREFIX.nodes`, `PREFIX.links` and `PREFIX.edges`.
    ///
    /// # Errors
    /// When a file cannot be read, or a line makes no sense; the text says which.
    pub fn read(prefix: &str) -> Result<Self, Error> {
        let read = |extension: &str| {
            let path = Path::new(&format!("{prefix}.{extension}")).to_owned();
            let text = std::fs::read_to_string(&path).map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?;
            Ok::<_, Error>((path.display().to_string(), text))
        };
        Self::parse(&read("nodes")?, &read("links")?, &read("edges")?)
    }

    /// From the texts of the three files, each with its name for messages.
    ///
    /// # Errors
    /// As [`Topology::read`].
    pub fn parse(
        nodes_file: &(String, String),
        links_file: &(String, String),
        edges_file: &(String, String),
    ) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for (line, fields) in rows(nodes_file, 7)? {
            nodes.push(Node {
                name: fields[1].to_owned(),
                speed: positive(&nodes_file.0, line, "speed", fields[2])?,
                model: fields[6].to_owned(),
            });
        }
        let mut links = Vec::new();
        for (line, fields) in rows(links_file, 4)? {
            let capacity = positive(&links_file.0, line, "capacity", fields[1])?;
            links.push((fields[2].to_owned(), capacity * 1e6));
        }
        let mut edges = Vec::new();
        for (at, line) in edges_file.1.lines().enumerate() {
            let mut names = line.split_whitespace().map(str::to_owned);
            if let Some(from) = names.next() {
                edges.push((at + 1, from, names.collect::<Vec<_>>()));
            }
        }
        Self::build(nodes, &links, &edges, &edges_file.0)
    }

    /// `edges` with the line that each is from.
    fn build(
        mut nodes: Vec<Node>,
        links: &[(String, f64)],
        edges: &[(usize, String, Vec<String>)],
        source: &str,
    ) -> Result<Self, Error> {
        if nodes.is_empty() {
            return Err(Error::invalid(format!("{source}: there are no nodes")));
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut graph = Graph {
            names: BTreeMap::new(),
            capacity: Vec::new(),
            neighbours: Vec::new(),
        };
        for node in &nodes {
            if graph.names.contains_key(&node.name) {
                return Err(Error::invalid(format!(
                    "{source}: two nodes are called {}",
                    node.name
                )));
            }
            graph.vertex(&node.name, None);
        }
        for (name, capacity) in links {
            graph.vertex(name, Some(*capacity));
        }
        // Whatever else has neighbours is a switch.
        for (_, from, _) in edges {
            graph.vertex(from, None);
        }
        for (line, from, to) in edges {
            for to in to {
                let Some(to) = graph.names.get(to).copied() else {
                    return Err(Error::invalid(format!(
                        "{source}, line {line}: {from} is next to {to}, which is no node, link or switch"
                    )));
                };
                let from = graph.names[from];
                graph.neighbours[from].push(to);
            }
        }
        let count = nodes.len();
        crate::memory::check(source, Self::bytes(count as f64))?;
        let mut routes = vec![Route::default(); count * count];
        for to in 0..count {
            let tree = graph.routes_from(to);
            for from in (0..count).filter(|from| *from != to) {
                routes[from * count + to] = tree[from].ok_or_else(|| {
                    Error::invalid(format!(
                        "{source}: there is no way from {} to {}",
                        nodes[to].name, nodes[from].name
                    ))
                })?;
            }
        }
        Ok(Self { nodes, routes })
    }

    /// A factory: halls with a LAN of boards each, joined by a slower backbone, and one server in the
    /// middle.
    ///
    /// # Errors
    /// When there would be no nodes.
    pub fn iiot(halls: u32, boards: u32, random: &mut Random) -> Result<Self, Error> {
        let mut plan = Plan::default();
        plan.machine("server", 17e9, "nuci5", "backbone", 1000.0);
        for hall in 0..halls {
            let lan = format!("lan_{hall}");
            plan.join(&lan, "backbone", random.uniform(200.0, 400.0));
            for board in 0..boards {
                let (speed, model) = if random.chance(0.25) {
                    (8.2e9, "nvidia_jetson_tx2")
                } else {
                    (1.0e9, "rpi3b+")
                };
                plan.machine(&format!("board_{hall}_{board}"), speed, model, &lan, 1000.0);
            }
        }
        plan.build("the generated factory")
    }

    /// A city: sensors on slow radio links to cabinets, cabinets to one site of the operator.
    ///
    /// # Errors
    /// When there would be no nodes.
    pub fn urban(cabinets: u32, sensors: u32, random: &mut Random) -> Result<Self, Error> {
        let mut plan = Plan::default();
        plan.machine("operator", 34e9, "server", "metro", 10_000.0);
        for cabinet in 0..cabinets {
            let street = format!("street_{cabinet}");
            plan.join(&street, "metro", 1000.0);
            plan.machine(
                &format!("cabinet_{cabinet}"),
                17e9,
                "nuci5",
                &street,
                1000.0,
            );
            for sensor in 0..sensors {
                let name = format!("sensor_{cabinet}_{sensor}");
                let radio = random.uniform(20.0, 100.0);
                plan.machine(&name, 1.0e9, "rpi3b+", &street, radio);
            }
        }
        plan.build("the generated city")
    }
}

/// A generated topology while it grows.
#[derive(Default)]
struct Plan {
    nodes: Vec<Node>,
    links: Vec<(String, f64)>,
    edges: BTreeMap<String, Vec<String>>,
}

impl Plan {
    fn machine(&mut self, name: &str, speed: f64, model: &str, switch: &str, mbps: f64) {
        self.nodes.push(Node {
            name: name.into(),
            speed,
            model: model.into(),
        });
        self.join(name, switch, mbps);
    }

    fn join(&mut self, a: &str, b: &str, mbps: f64) {
        let link = format!("link_{a}");
        self.links.push((link.clone(), mbps * 1e6));
        for (from, to) in [(a, &*link), (&*link, a), (b, &*link), (&*link, b)] {
            self.edges.entry(from.into()).or_default().push(to.into());
        }
    }

    fn build(self, source: &str) -> Result<Topology, Error> {
        let edges: Vec<_> = self
            .edges
            .into_iter()
            .map(|(from, to)| (0, from, to))
            .collect();
        Topology::build(self.nodes, &self.links, &edges, source)
    }
}

impl Graph {
    fn vertex(&mut self, name: &str, capacity: Option<f64>) {
        let next = self.capacity.len();
        if let std::collections::btree_map::Entry::Vacant(entry) = self.names.entry(name.to_owned())
        {
            entry.insert(next);
            self.capacity.push(capacity);
            self.neighbours.push(Vec::new());
        }
    }

    /// Shortest ways from `start` to each vertex; an edge weighs two inverse capacities for each of
    /// its ends that is a link. Traffic takes them backwards, towards `start`.
    fn routes_from(&self, start: usize) -> Vec<Option<Route>> {
        let inverse = |at: usize| self.capacity[at].map_or(0.0, |capacity| 1.0 / capacity);
        let mut best = vec![f64::INFINITY; self.capacity.len()];
        let mut routes = vec![None; self.capacity.len()];
        let mut queue = BinaryHeap::from([(Reverse(0_u64), start)]);
        best[start] = 0.0;
        routes[start] = Some(Route::default());
        while let Some((Reverse(bits), at)) = queue.pop() {
            let weight = f64::from_bits(bits);
            if weight > best[at] {
                continue;
            }
            let Some(route) = routes[at] else { continue };
            for &next in &self.neighbours[at] {
                let then = weight + 2.0 * (inverse(at) + inverse(next));
                if then < best[next] {
                    best[next] = then;
                    routes[next] = Some(Route {
                        seconds_per_byte: route.seconds_per_byte + 8.0 * inverse(next),
                        hops: route.hops + u32::from(self.capacity[next].is_some()),
                    });
                    queue.push((Reverse(then.to_bits()), next));
                }
            }
        }
        routes
    }
}

/// The lines of a file with `fields` fields each, numbered from 1.
fn rows(file: &(String, String), fields: usize) -> Result<Vec<(usize, Vec<&str>)>, Error> {
    let (name, text) = file;
    let mut rows = Vec::new();
    for (at, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let row: Vec<&str> = line.split(';').map(str::trim).collect();
        if row.len() != fields {
            return Err(Error::invalid(format!(
                "{name}, line {}: {} fields with ; between them, expected {fields}",
                at + 1,
                row.len()
            )));
        }
        rows.push((at + 1, row));
    }
    Ok(rows)
}

fn positive(file: &str, line: usize, what: &str, text: &str) -> Result<f64, Error> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(Error::invalid(format!(
            "{file}, line {line}: the {what} is {text:?}; it has to be a number above 0"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(nodes: &str, links: &str, edges: &str) -> Result<Topology, Error> {
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        Topology::parse(
            &file("t.nodes", nodes),
            &file("t.links", links),
            &file("t.edges", edges),
        )
    }

    const NODES: &str = "0;a;100;1;x;y;m\n1;b;200;1;x;y;m\n";
    const LINKS: &str = "0;8;l;node\n1;4;k;node\n";
    const EDGES: &str = "a l\nl a s\ns l k\nk s b\nb k\n";

    #[test]
    fn bytes_pay_for_each_link_on_their_way() {
        let topology = parse(NODES, LINKS, EDGES).unwrap();
        let route = topology.route(0, 1);
        assert_eq!(route.hops, 2);
        assert!((route.seconds_per_byte - 3e-6).abs() < 1e-15);
        assert_eq!(topology.route(1, 1), Route::default());
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (nodes, links, edges, says) in [
            ("", LINKS, EDGES, "no nodes"),
            ("0;a;100\n", LINKS, EDGES, "t.nodes, line 1: 3 fields"),
            ("0;a;-1;1;x;y;m\n", LINKS, EDGES, "the speed is \"-1\""),
            (
                NODES,
                "0;0;l;node\n",
                EDGES,
                "t.links, line 1: the capacity is \"0\"",
            ),
            (NODES, "0;NaN;l;node\n", EDGES, "above 0"),
            (
                NODES,
                LINKS,
                "a l\nl a zz\n",
                "t.edges, line 2: l is next to zz",
            ),
            (NODES, LINKS, "a l\nl a\n", "there is no way from"),
        ] {
            let text = parse(nodes, links, edges).unwrap_err().to_string();
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn generated_topologies_are_connected_and_the_server_is_in_the_middle() {
        let mut random = Random::new(1, 0);
        let factory = Topology::iiot(4, 6, &mut random).unwrap();
        assert_eq!(factory.nodes().len(), 25);
        assert_eq!(factory.nodes()[factory.centre()].name, "server");
        let city = Topology::urban(3, 5, &mut random).unwrap();
        assert_eq!(city.nodes().len(), 1 + 3 * 6);
    }
}
