#!/usr/bin/env bash
# Compares Fulmar with its peers on this machine, in one go: installs what is missing, builds, runs
# each server in turn on loopback, and prints tables. See bench/README.md.
#
#     bench/compare.sh [--trial] [OPTIONS OF compare, see --help]
#
# FULMAR_BENCH_DIR  folder for builds, npm packages, data and logs (default: target/bench); data is
#                   written there, so it has to be on the disk that is to be measured
# FULMAR_BIN        a built binary of Fulmar, to measure that one instead of building
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${FULMAR_BENCH_DIR:-$root/target/bench}
target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$work"

say() { printf '=== %s\n' "$*" >&2; }
as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }

arguments=()
for argument in "$@"; do
    # For seeing whether everything works; the figures mean nothing.
    if [[ $argument == --trial ]]; then
        arguments+=(--rounds 1 --seconds 1)
    else
        arguments+=("$argument")
    fi
done

packages=()
command -v wrk >/dev/null || packages+=(wrk)
command -v redis-server >/dev/null || packages+=(redis-server)
command -v npm >/dev/null || packages+=(nodejs npm)
if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    packages+=(postgresql)
fi
if ((${#packages[@]})); then
    say "installing ${packages[*]}"
    as_root apt-get update -qq
    # The run level keeps Debian from starting servers of its own.
    as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

say "npm packages in $work/npm"
mkdir -p "$work/npm"
if ! cmp -s "$root/bench/peers/package.json" "$work/npm/package.json"; then
    cp "$root/bench/peers/package.json" "$work/npm/"
    # The servers are in packages for each platform; no script has to run for them.
    (cd "$work/npm" && npm install --silent --no-fund --no-audit --ignore-scripts) ||
        { rm "$work/npm/package.json" && exit 1; }
fi

say "building"
cd "$root"
command -v rustup >/dev/null && rustup target add wasm32-wasip2 >&2
if [[ -n ${FULMAR_BIN:-} ]]; then
    fulmar=$FULMAR_BIN
else
    cargo build --release --package fulmar-cli
    fulmar=$target/release/fulmar
fi
cargo build --release --target wasm32-wasip2 --package counter --package five
(cd bench/peers && CARGO_TARGET_DIR=$work/cargo cargo build --release --locked)

say "comparing"
exec "$work/cargo/release/compare" --fulmar "$fulmar" --functions "$target/wasm32-wasip2/release" \
    --bench "$root/bench" --work "$work" "${arguments[@]}"
