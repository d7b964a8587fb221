//! What the OCI runtime is told: `config.json` of the runtime specification.

use std::path::{Path, PathBuf};

use fulmar_model::FunctionName;
use rustix::process::{getegid, geteuid};
use serde_json::{Value, json};

use super::{FIRST_ID, IDS, Image};
use crate::launch::{FILE_BYTES, OPEN_FILES, REFUSED};
use crate::process::PATH;
use crate::process::start::{SOCKET, STATE};
use crate::settings::{FileGrant, FunctionSettings};

/// Where a container finds its sockets.
pub(super) const OWN: &str = "/run/fulmar";
/// What of `/proc` tells of the machine, and what changes it.
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
];
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];
/// What a container that may use the network has of the machine's.
const NETWORK: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Who the users of a container are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// Users from [`FIRST_ID`] on, in a namespace of their own.
    Mapped,
    /// The same, where there are no such namespaces.
    Shifted,
    /// Whoever runs the node.
    Node,
}

impl Identity {
    pub(super) fn of_node(is_root: bool) -> Self {
        let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
        match (is_root, most) {
            (false, _) => Self::Node,
            (true, Ok(most)) if most.trim() != "0" => Self::Mapped,
            (true, _) => Self::Shifted,
        }
    }
}

/// What it is made of.
pub(super) struct Spec<'a> {
    pub(super) function: &'a FunctionName,
    pub(super) command: &'a [String],
    pub(super) image: &'a Image,
    pub(super) settings: &'a FunctionSettings,
    /// The image's files, and the folder of the sockets, as the runtime sees them.
    pub(super) root: &'a Path,
    pub(super) own: &'a Path,
    /// Folders that are granted, as the runtime sees them.
    pub(super) files: &'a [(PathBuf, &'a FileGrant)],
    pub(super) identity: Identity,
    /// Whether a cgroup bounds its memory.
    pub(super) is_bounded: bool,
    /// Whether the runtime makes that.
    pub(super) bounds_itself: bool,
}

impl Spec<'_> {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "hostname": self.function.as_str(),
            "root": { "path": self.root, "readonly": true },
            "process": self.process(),
            "mounts": self.mounts(),
            "linux": self.linux(),
        })
    }

    fn process(&self) -> Value {
        let (user, group) = match self.identity {
            Identity::Shifted => (self.image.user + FIRST_ID, self.image.group + FIRST_ID),
            Identity::Mapped | Identity::Node => (self.image.user, self.image.group),
        };
        let mut limits = vec![
            ("RLIMIT_CORE", 0),
            ("RLIMIT_NOFILE", OPEN_FILES),
            ("RLIMIT_FSIZE", FILE_BYTES),
        ];
        if !self.is_bounded {
            limits.push(("RLIMIT_DATA", self.settings.memory_bytes as u64));
        }
        let limits = limits
            .iter()
            .map(|(kind, limit)| json!({ "type": kind, "soft": limit, "hard": limit }));
        let none: [&str; 0] = [];
        json!({
            "user": { "uid": user, "gid": group },
            "args": self.command,
            "env": self.env(),
            "cwd": match self.image.folder.as_str() { "" => "/", folder => folder },
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": none, "effective": none, "permitted": none, "inheritable": none, "ambient": none,
            },
            "rlimits": limits.collect::<Vec<_>>(),
        })
    }

    /// What the image says, then what the manifest says, then what the node says.
    fn env(&self) -> Vec<String> {
        let mut env = vec![format!("PATH={PATH}"), "TMPDIR=/tmp".to_owned()];
        let asked = self.settings.env.iter();
        let asked = asked.map(|(name, value)| format!("{name}={value}"));
        let given = [
            format!("FULMAR_SOCKET={OWN}/{SOCKET}"),
            format!("FULMAR_STATE_SOCKET={OWN}/{STATE}"),
            format!("FULMAR_FUNCTION={}", self.function),
        ];
        for entry in self.image.env.iter().cloned().chain(asked).chain(given) {
            let name = entry.split('=').next().unwrap_or_default();
            let is_same = |known: &String| known.split('=').next() == Some(name);
            env.retain(|known| !is_same(known));
            env.push(entry);
        }
        env
    }

    fn mounts(&self) -> Vec<Value> {
        let fresh = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
        let bound = |from: &Path, at: &str, how: &str| {
            let options = ["bind", how, "nosuid", "nodev"];
            json!({ "destination": at, "type": "bind", "source": from, "options": options })
        };
        let mut mounts = vec![
            fresh("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            fresh("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
            fresh("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
            fresh(
                "/dev/shm",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=1777"],
            ),
            bound(self.own, OWN, "rw"),
        ];
        for (from, file) in self.files {
            let how = if file.writable { "rw" } else { "ro" };
            mounts.push(bound(from, &file.guest, how));
        }
        if self.settings.network {
            let known = NETWORK.iter().filter(|path| Path::new(path).exists());
            mounts.extend(known.map(|path| bound(Path::new(path), path, "ro")));
        }
        mounts
    }

    fn linux(&self) -> Value {
        let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
        if !self.settings.network {
            namespaces.push("network");
        }
        let mapped = |inside: u32, outside: u32, size: u32| json!([{ "containerID": inside, "hostID": outside, "size": size }]);
        let (mut users, mut groups) = (Value::Null, Value::Null);
        match self.identity {
            Identity::Mapped => {
                users = mapped(0, FIRST_ID, IDS);
                groups = users.clone();
            }
            Identity::Node => {
                users = mapped(self.image.user, geteuid().as_raw(), 1);
                groups = mapped(self.image.group, getegid().as_raw(), 1);
            }
            Identity::Shifted => {}
        }
        if !users.is_null() {
            namespaces.push("user");
        }
        let namespaces = namespaces.iter().map(|kind| json!({ "type": kind }));
        let mut linux = json!({
            "namespaces": namespaces.collect::<Vec<_>>(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp(),
        });
        if !users.is_null() {
            linux["uidMappings"] = users;
            linux["gidMappings"] = groups;
        }
        if self.bounds_itself && self.is_bounded {
            let memory = self.settings.memory_bytes;
            linux["resources"] = json!({ "memory": { "limit": memory, "swap": memory } });
        }
        linux
    }
}

/// As for programs that are no containers.
fn seccomp() -> Value {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        _ => "SCMP_ARCH_X86_64",
    };
    let users = libc::CLONE_NEWUSER;
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [architecture],
        "syscalls": [
            { "names": REFUSED.map(|(name, _)| name), "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS },
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": libc::EPERM,
                "args": [{ "index": 0, "value": users, "valueTwo": users, "op": "SCMP_CMP_MASKED_EQ" }],
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(identity: Identity, network: bool) -> Value {
        let image = Image {
            env: vec!["A=image".to_owned(), "PATH=/image".to_owned()],
            user: 7,
            ..Image::default()
        };
        let settings = FunctionSettings {
            network,
            env: vec![
                ("A".to_owned(), "manifest".to_owned()),
                ("FULMAR_SOCKET".to_owned(), "mine".to_owned()),
            ],
            ..FunctionSettings::default()
        };
        let spec = Spec {
            function: &FunctionName::new("f").unwrap(),
            command: &["run".to_owned()],
            image: &image,
            settings: &settings,
            root: Path::new("/root"),
            own: Path::new("/own"),
            files: &[],
            identity,
            is_bounded: true,
            bounds_itself: false,
        };
        spec.to_json()
    }

    #[test]
    fn each_may_say_more_than_those_before_it() {
        let spec = spec(Identity::Mapped, false);
        let env = spec["process"]["env"].as_array().unwrap();
        let has = |entry: &str| env.iter().any(|known| known == entry);
        assert!(has("PATH=/image") && has("A=manifest") && !has("A=image"));
        assert!(has("FULMAR_SOCKET=/run/fulmar/function") && !has("FULMAR_SOCKET=mine"));
    }

    #[test]
    fn nobody_inside_is_somebody_outside() {
        let mapped = spec(Identity::Mapped, false);
        assert_eq!(mapped["linux"]["uidMappings"][0]["hostID"], FIRST_ID);
        assert_eq!(mapped["process"]["user"]["uid"], 7);
        let shifted = spec(Identity::Shifted, true);
        assert_eq!(shifted["process"]["user"]["uid"], FIRST_ID + 7);
        let kinds = |spec: &Value| spec["linux"]["namespaces"].to_string();
        assert!(kinds(&mapped).contains("network") && kinds(&mapped).contains("user"));
        assert!(!kinds(&shifted).contains("network") && !kinds(&shifted).contains("user"));
    }
}
