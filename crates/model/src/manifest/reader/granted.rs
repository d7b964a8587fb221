//! The table `[grants]`.

use toml::de::{DeTable, DeValue};

use super::{Node, Reader, kind, label, shortened, suggestion};
use crate::manifest::grants::{FileGrant, FileMode, Grants, HostGrant, check_absolute};
use crate::manifest::schema;

impl Reader<'_> {
    pub(super) fn grants(&mut self, root: &DeTable<'_>) -> Grants {
        let section = self.section(root, "grants");
        let mut grants = Grants::default();
        self.flag(&section, &schema::GRANTS_NETWORK, &mut grants.network);
        let field = &schema::GRANTS_HTTP;
        for (node, text) in self.texts(&section, field) {
            match HostGrant::new(text) {
                Ok(host) if grants.http.contains(&host) => {
                    self.refuse(
                        node,
                        field,
                        format!("{host} is listed twice"),
                        "remove one of them",
                    );
                }
                Ok(host) => grants.http.push(host),
                Err(fault) => self.refuse(node, field, fault, "write the bare name of the host"),
            }
        }
        for node in self.list(&section, &schema::GRANTS_FILES) {
            let Some(grant) = self.file_grant(node) else {
                continue;
            };
            if grants.files.iter().any(|other| other.guest == grant.guest) {
                let found = format!("the guest path {:?} is granted twice", grant.guest);
                self.refuse(
                    node,
                    &schema::GRANTS_FILES,
                    found,
                    "give each grant a guest path of its own",
                );
                continue;
            }
            grants.files.push(grant);
        }
        grants
    }

    fn file_grant(&mut self, node: &Node<'_>) -> Option<FileGrant> {
        let field = &schema::GRANTS_FILES;
        let DeValue::Table(table) = node.get_ref() else {
            let found = format!("{} holds {}", label(field), kind(node.get_ref()));
            self.refuse(
                node,
                field,
                found,
                "write { host = ..., guest = ..., mode = ... }",
            );
            return None;
        };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !schema::FILE_GRANT_KEYS.contains(&name) {
                self.report(
                    key.span(),
                    format!("unknown key `{}` in grants.files", shortened(name)),
                    format!("allowed are {}", schema::FILE_GRANT_KEYS.join(", ")),
                    suggestion(name, schema::FILE_GRANT_KEYS),
                );
            }
        }
        let host = self.grant_path(node, table, "host");
        let guest = self.grant_path(node, table, "guest");
        let mode = match table.get("mode") {
            None => Some(FileMode::default()),
            Some(mode) => match mode.get_ref() {
                DeValue::String(word) if *word == "ro" => Some(FileMode::ReadOnly),
                DeValue::String(word) if *word == "rw" => Some(FileMode::ReadWrite),
                other => {
                    let found = match other {
                        DeValue::String(word) => format!("`mode` is {:?}", shortened(word)),
                        other => format!("`mode` is {}", kind(other)),
                    };
                    self.report(
                        mode.span(),
                        found,
                        "allowed are \"ro\" and \"rw\"",
                        "choose one of them",
                    );
                    None
                }
            },
        };
        Some(FileGrant {
            host: host?,
            guest: guest?,
            mode: mode?,
        })
    }

    fn grant_path(&mut self, grant: &Node<'_>, table: &DeTable<'_>, key: &str) -> Option<String> {
        let field = &schema::GRANTS_FILES;
        let Some(node) = table.get(key) else {
            let found = format!("the grant has no `{key}`");
            self.refuse(
                grant,
                field,
                found,
                format!("add {key} = \"/some/directory\""),
            );
            return None;
        };
        let DeValue::String(path) = node.get_ref() else {
            let found = format!("`{key}` is {}", kind(node.get_ref()));
            self.refuse(node, field, found, "write a path in double quotes");
            return None;
        };
        if let Err(fault) = check_absolute(path) {
            let found = format!("`{key}` {fault}");
            self.refuse(
                node,
                field,
                found,
                "write an absolute path without . and ..",
            );
            return None;
        }
        Some(path.to_string())
    }
}
