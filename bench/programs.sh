#!/usr/bin/env bash
# How programs and components bear overload, and a neighbour that takes all CPU: bench/programs.sh [FULMAR]
#
# Prints what `fulmar bench` says of each phase. Nothing else should run on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
fulmar=${1:-target/release/fulmar}
work=$(mktemp -d)
node=
finish() {
    [[ -z $node ]] || kill "$node" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

# A function in Python: NAME, what its handler does, more of its manifest.
function_() {
    mkdir -p "$work/$1"
    cp -r sdk/python/src/fulmar "$work/$1/"
    printf 'import fulmar, time\n\ndef handle(request, ctx):\n    %s\n    return "1"\n\nfulmar.serve(handle)\n' "$2" >"$work/$1/main.py"
    printf 'name = "%s"\nartifact = "."\n[process]\ncommand = ["python3", "-S", "main.py"]\n%s\n' "$1" "$3" >"$work/$1/fulmar.toml"
    "$fulmar" deploy --node "$url" "$work/$1" 2>/dev/null
}

start() {
    "$fulmar" dev --data "$work/data-$1" --port 0 --ports-file "$work/ports" --log warn >/dev/null &
    node=$!
    until [[ -s $work/ports ]]; do sleep 0.1; done
    url=http://127.0.0.1:$(sed 's/.*"http": *\([0-9]*\).*/\1/' "$work/ports")
}

stop() {
    kill "$node"
    wait "$node" || true
    node=
    rm -f "$work/ports"
}

load() {
    printf '\n== %s\n' "$1"
    "$fulmar" bench --node "$url" "${@:2}" --overload 2>/dev/null
}

busy() { printf 'until = time.process_time() + %s\n    while time.process_time() < until:\n        pass' "$1"; }

start overload
function_ slow 'time.sleep(0.02)' $'[workers]\nmax = 2'
load 'as much as two workers do' closed --function slow --connections 4 --duration 10s
load 'three quarters of it' open --rate 74 --function slow --duration 20s
load 'ten times as much, for a minute' open --rate 1000 --function slow --connections 256 --duration 60s --warm-up 0s
load 'three quarters of it, at once after' open --rate 74 --function slow --duration 2s --warm-up 0s
stop

start component
"$fulmar" deploy --node "$url" target/wasm32-wasip2/release/guest_faults.wasm 2>/dev/null
component=(--url-path '/fn/guest-faults?{k}' --body 'spin 5')
load 'a component: as much as two CPUs do' closed "${component[@]}" --connections 4 --duration 10s
load 'ten times as much, for a minute' open --rate 4000 "${component[@]}" --duration 60s --warm-up 0s
load 'half of it, at once after' open --rate 200 "${component[@]}" --duration 4s --warm-up 0s
stop

for reserved in '' 'reserved_cpu = "500m"'; do
    start "neighbour$reserved"
    function_ quick "$(busy 0.005)" $'[workers]\nmin = 1\nmax = 2\n'"$reserved"
    function_ hog "$(busy 1)" $'[limits]\ntimeout = "60s"\n[workers]\nmin = 4\nmax = 4\n[queue]\nmax_wait = "1m"'
    load "5 ms of work, alone; $reserved" open --rate 20 --function quick --sessions 4 --connections 8 --duration 15s
    "$fulmar" bench --node "$url" closed --function hog --sessions 4 --connections 4 --duration 18s --overload >/dev/null 2>&1 &
    hog=$!
    load "beside four that take all CPU; $reserved" open --rate 20 --function quick --sessions 4 --connections 8 --duration 15s
    wait "$hog"
    stop
done
