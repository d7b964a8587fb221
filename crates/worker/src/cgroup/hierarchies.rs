//! Where the controllers of cgroups are on this machine: all in one hierarchy (version 2), each in one of its own (version
//! 1), or some here and some there.

use std::path::{Path, PathBuf};

/// What bounds workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Pids,
    /// Of the first version: it counts what CPU was used, which `Cpu` does in the second.
    Usage,
}

impl Controller {
    pub(super) const NEEDED: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];
    const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Usage];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Usage => "cpuacct",
        }
    }
}

/// One hierarchy, as it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its root, or what of it can be seen here.
    pub(super) root: PathBuf,
    /// The group of this process in it.
    pub(super) own: PathBuf,
    pub(super) is_v2: bool,
    /// Its controllers; of version 2 none, since each group has its own list of them.
    controllers: Vec<Controller>,
}

impl Hierarchy {
    /// Which controllers a group below `parent` could have.
    pub(super) fn controllers(&self, parent: &Path) -> Vec<Controller> {
        if !self.is_v2 {
            return self.controllers.clone();
        }
        let listed = std::fs::read_to_string(parent.join("cgroup.controllers"));
        let listed = listed.unwrap_or_default();
        let is_listed = |controller: &Controller| {
            let mut names = listed.split_ascii_whitespace();
            names.any(|name| name == controller.name())
        };
        Controller::NEEDED.into_iter().filter(is_listed).collect()
    }
}

/// The hierarchies in which there may be controllers for workers.
pub(super) fn find() -> std::io::Result<Vec<Hierarchy>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup")?;
    Ok(read(&mounts, &groups))
}

/// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn read(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|mount| hierarchy(mount, groups))
        .collect()
}

fn hierarchy(mount: &str, groups: &str) -> Option<Hierarchy> {
    // 30 23 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
    let (place, kind) = mount.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (shown, root) = (place.next()?, PathBuf::from(place.next()?));
    let mut kind = kind.split(' ');
    let is_v2 = match kind.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options: Vec<&str> = kind.next_back()?.split(',').collect();
    let is_offered = |controller: &Controller| !is_v2 && options.contains(&controller.name());
    let controllers: Vec<_> = Controller::ALL.into_iter().filter(is_offered).collect();
    if !is_v2 && controllers.is_empty() {
        return None;
    }
    let is_this = |names: &str| match (is_v2, controllers.first()) {
        (true, _) => names.is_empty(),
        (false, Some(first)) => names.split(',').any(|name| name == first.name()),
        (false, None) => false,
    };
    // 5:cpu,cpuacct:/user.slice
    let own = groups.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (names, path) = line.split_once(':')?;
        is_this(names).then_some(path)
    })?;
    // A container may see a part of the hierarchy only.
    let own = Path::new(own);
    let within = own.strip_prefix(shown).or_else(|_| own.strip_prefix("/"));
    Some(Hierarchy {
        own: root.join(within.ok()?),
        root,
        is_v2,
        controllers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_in_one_or_each_in_its_own() {
        let unified = "24 18 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
            25 18 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
        let found = read(unified, "0::/system.slice/fulmar.service\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].is_v2);
        let own = Path::new("/sys/fs/cgroup/system.slice/fulmar.service");
        assert_eq!(found[0].own, own);
        let hybrid = "30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            31 23 0:27 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            32 23 0:28 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
            33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "5:memory:/docker/1/inner\n4:cpu,cpuacct:/a\n3:devices:/\n0::/\n";
        let found = read(hybrid, groups);
        let own: Vec<_> = found
            .iter()
            .map(|found| found.own.to_str().unwrap())
            .collect();
        assert_eq!(
            own,
            [
                "/sys/fs/cgroup/cpu,cpuacct/a",
                "/sys/fs/cgroup/memory/inner",
                "/sys/fs/cgroup/unified/"
            ]
        );
        let cpu = found[0].controllers(&found[0].own);
        assert_eq!(cpu, [Controller::Cpu, Controller::Usage]);
        assert!(found[2].controllers(Path::new("/nowhere")).is_empty());
    }
}
