//! The folder that `fulmar new rust NAME` makes: a function that builds, with its tests, its manifest
//! and the SDK beside it, so that nothing has to be fetched from Fulmar.

#[path = "../templates/sdk_files.rs"]
mod sdk_files;

use sdk_files::SDK_FILES;

/// Path in the new folder, and template.
const RUST: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        include_str!("../templates/rust/Cargo.toml.tmpl"),
    ),
    ("src/lib.rs", include_str!("../templates/rust/lib.rs.tmpl")),
    (
        "fulmar.toml",
        include_str!("../templates/rust/fulmar.toml.tmpl"),
    ),
    (
        "README.md",
        include_str!("../templates/rust/README.md.tmpl"),
    ),
    (
        ".gitignore",
        include_str!("../templates/rust/gitignore.tmpl"),
    ),
];

/// The files of a new function in Rust: path in its folder, and text. `name` is a valid name of a
/// function.
pub(crate) fn rust(name: &str) -> Vec<(String, String)> {
    let function = RUST.iter().map(|&(path, text)| {
        let text = text
            .replace("{{name}}", name)
            .replace("{{package}}", &package(name))
            .replace("{{artifact}}", &package(name).replace('-', "_"));
        (path.to_owned(), text)
    });
    let sdk = SDK_FILES
        .iter()
        .map(|&(path, text)| (format!("sdk/{path}"), text.to_owned()));
    function.chain(sdk).collect()
}

/// The name of the cargo package: names of functions may be what those of packages may not.
fn package(name: &str) -> String {
    let is_taken = matches!(name, "test" | "fulmar" | "core" | "std" | "alloc");
    if is_crate_name(name) && !is_taken {
        name.to_owned()
    } else {
        format!("fn-{name}")
    }
}

/// Whether a name can be that of a crate: it does not start with a digit and is no keyword.
fn is_crate_name(name: &str) -> bool {
    const KEYWORDS: &[&str] = &[
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
        "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
        "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
        "ref", "return", "self", "static", "struct", "super", "trait", "true", "try", "type",
        "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    ];
    !name.starts_with(|first: char| first.is_ascii_digit()) && !KEYWORDS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn files_below(directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(files_below(&path));
            } else {
                files.push(path);
            }
        }
        files
    }

    #[test]
    fn the_sdk_is_vendored_whole() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/rust");
        let vendored: BTreeSet<PathBuf> = SDK_FILES.iter().map(|(path, _)| path.into()).collect();
        let present = files_below(&sdk).into_iter();
        let present = present.map(|path| path.strip_prefix(&sdk).unwrap().to_owned());
        let present: BTreeSet<PathBuf> = present
            .filter(|path| !path.starts_with("tests") && !path.starts_with("target"))
            .collect();
        assert_eq!(vendored, present, "list it in templates/sdk_files.rs");
    }

    #[test]
    fn no_placeholder_is_left_and_the_artifact_is_what_cargo_makes() {
        for (name, artifact) in [
            ("hello-world", "hello_world"),
            ("7seas", "fn_7seas"),
            ("loop", "fn_loop"),
        ] {
            let files = rust(name);
            let (_, manifest) = files
                .iter()
                .find(|(path, _)| path == "fulmar.toml")
                .unwrap();
            assert!(manifest.contains(&format!("name = \"{name}\"")));
            assert!(manifest.contains(&format!("release/{artifact}.wasm\"")));
            for (path, text) in files.iter().filter(|(path, _)| !path.starts_with("sdk/")) {
                assert!(!text.contains("{{"), "{path}: {text}");
            }
        }
    }
}
