#!/usr/bin/env bash
# Shows that what `fulmar new rust NAME` writes builds as a component, passes its tests and has no
# lints: makes the folder from the templates as the command does, outside of the repository.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sdk=$here/../../../sdk/rust
name=${1:-hello-world}
artifact=${name//-/_}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

mkdir "$folder/src"
for file in Cargo.toml fulmar.toml README.md lib.rs; do
    target=$folder/$file
    [[ $file == lib.rs ]] && target=$folder/src/lib.rs
    sed "s/{{name}}/$name/g; s/{{package}}/$name/g; s/{{artifact}}/$artifact/g" \
        "$here/rust/$file.tmpl" >"$target"
done
# The list of the vendored files is the one that the command line has.
sed -n 's/.*include_str!("\(..\/\)*sdk\/rust\/\([^"]*\)").*/\2/p' "$here/sdk_files.rs" |
    while read -r file; do
        mkdir -p "$folder/sdk/$(dirname "$file")"
        cp "$sdk/$file" "$folder/sdk/$file"
    done

cd "$folder"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/../../../target}/template
cargo build --quiet --release --target wasm32-wasip2
cargo test --quiet
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --quiet --all-targets -- -D warnings
fi
cargo fmt --check
wasm=$CARGO_TARGET_DIR/wasm32-wasip2/release/$artifact.wasm
grep -q "release/$artifact.wasm" fulmar.toml
echo "the template builds: $(stat -c %s "$wasm") bytes"
