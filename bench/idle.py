#!/usr/bin/env python3
"""Memory of functions that are deployed and idle: bench/idle.py FULMAR COMPONENT [COUNT]

Deploys COUNT functions (1,000), each with a component of its own, restarts the node, and prints its proportional set
size with none and with all of them, in KiB.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request


class Node:
    def __init__(self, binary: str, data: pathlib.Path) -> None:
        ports = data.with_name("ports")
        ports.unlink(missing_ok=True)
        arguments = ["dev", "--data", data, "--port", "0", "--ports-file", ports, "--log", "warn"]
        self.process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
        while not ports.exists() or not ports.read_text():
            time.sleep(0.05)
        self.port = json.loads(ports.read_text())["http"]

    def request(self, method: str, path: str, body: bytes) -> None:
        url = f"http://127.0.0.1:{self.port}{path}"
        urllib.request.urlopen(urllib.request.Request(url, data=body, method=method)).read()

    def deploy(self, name: str, component: bytes) -> None:
        digest = hashlib.sha256(component).hexdigest()
        self.request("PUT", f"/admin/artifacts/{digest}", component)
        manifest = f'name = "{name}"\nartifact = "{name}.wasm"\n'
        body = json.dumps({"manifest": manifest, "artifact": digest}).encode()
        self.request("PUT", f"/admin/functions/{name}", body)

    def memory(self) -> int:
        self.request("POST", "/fn/first/a", b"1")
        time.sleep(3)
        rollup = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


binary, path, count = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["1000"])[0])
component = pathlib.Path(path).read_bytes()
with tempfile.TemporaryDirectory() as folder:
    data = pathlib.Path(folder) / "data"
    node = Node(binary, data)
    node.deploy("first", component)
    node.stop()
    node = Node(binary, data)
    none = node.memory()
    for index in range(count):
        # A custom section makes another component of it.
        name = str(index).encode()
        node.deploy(f"f-{index}", component + bytes([0, len(name) + 1, len(name)]) + name)
    node.stop()
    node = Node(binary, data)
    both = node.memory()
    node.stop()
    print(f"none {none}, {count} functions {both}, more {both - none}")
