#!/usr/bin/env bash
# Builds python_counter.wasm (or the path given) with componentize-py, which it looks for in PATH and
# else installs into a virtual environment below target/.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$here/../..
output=${1:-$top/target/wasm32-wasip2/release/python_counter.wasm}
mkdir -p "$(dirname "$output")"
output=$(realpath "$output")

tool=$(command -v componentize-py || true)
if [[ -z $tool ]]; then
    venv=$top/target/python-counter-venv
    tool=$venv/bin/componentize-py
    if [[ ! -x $tool ]]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check "componentize-py>=0.25"
    fi
fi
cd "$here"
"$tool" --wit-path wit --world counter --quiet componentize app --output "$output"
echo "built $output ($(du -h "$output" | cut -f1))"
