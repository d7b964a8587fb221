"""What a handler sees of its invocation and of its state."""

from __future__ import annotations

from typing import Dict, Iterator, List, MutableMapping, Optional

from . import _wire


class StateError(Exception):
    """The node refuses an operation on state, and says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        #: The status of HTTP that the node answered.
        self.status = status


class Memory:
    """What is remembered of one session's state."""

    def __init__(self) -> None:
        self.values: Dict[str, Optional[bytes]] = {}
        #: Whether what is not in ``values`` is absent.
        self.complete = False

    def learn(self, frames: bytes) -> None:
        """Takes over what the node tells."""
        at = 0

        def part() -> bytes:
            nonlocal at
            size = int.from_bytes(frames[at : at + 4], "big")
            at += 4 + size
            return frames[at - size : at]

        while at < len(frames):
            kind = frames[at]
            at += 1
            if kind == _wire.FORGET:
                self.values.clear()
                self.complete = False
            elif kind == _wire.SET:
                key = part().decode()
                self.values[key] = part()
            elif kind == _wire.DELETE:
                self.values[part().decode()] = None
            elif kind == _wire.COMPLETE:
                self.complete = True
            else:
                raise ValueError(f"frame of an unknown kind {kind}")


class Bucket:
    """A shared bucket: each operation asks the node at once."""

    def __init__(self, client: _wire.Client, name: str, invocation: str) -> None:
        self._client = client
        self._invocation = invocation
        self._path = f"/buckets/{_wire.quote(name)}"

    def _ask(self, method: str, key: str, body: bytes = b"", action: str = "") -> bytes:
        path = f"{self._path}/{_wire.quote(key)}{action}"
        status, answer = self._client.ask(method, path, body, self._invocation)
        if status >= 300:
            raise StateError(status, answer.decode())
        return answer

    def get(self, key: str) -> Optional[bytes]:
        """The value of a key; ``None`` if it is absent."""
        try:
            return self._ask("GET", key)
        except StateError as error:
            if error.status == 404:
                return None
            raise

    def set(self, key: str, value: bytes) -> None:
        """Writes a key."""
        self._ask("PUT", key, value)

    def delete(self, key: str) -> None:
        """Deletes a key; an absent one is fine."""
        self._ask("DELETE", key)

    def increment(self, key: str, by: int = 1) -> int:
        """Adds to a decimal number, atomically; an absent key counts as 0."""
        return int(self._ask("POST", key, action=f"/increment?by={by}"))

    def compare_and_swap(
        self, key: str, expected: Optional[bytes], value: bytes
    ) -> bool:
        """Writes ``value`` if the present one is as expected (``None``: absent)."""
        how = "absent" if expected is None else f"expected={len(expected)}"
        body = (expected or b"") + value
        return self._ask("POST", key, body, f"/swap?{how}") == b"true"

    def keys(self, prefix: str = "") -> Iterator[str]:
        """The keys that begin so, in byte order."""
        import json

        after: Optional[str] = None
        while True:
            query = f"?prefix={_wire.quote(prefix)}"
            if after is not None:
                query += f"&after={_wire.quote(after)}"
            path = self._path + query
            status, answer = self._client.ask("GET", path, b"", self._invocation)
            if status != 200:
                raise StateError(status, answer.decode())
            page: List[str] = json.loads(answer)
            if not page:
                return
            yield from page
            after = page[-1]


class State(MutableMapping[str, bytes]):
    """The session's own state: a mapping of keys to bytes."""

    def __init__(
        self,
        client: _wire.Client,
        memory: Memory,
        read_only: bool = False,
        invocation: str = "",
        session: bool = True,
    ) -> None:
        self._bucket = Bucket(client, "session", invocation)
        self._memory = memory
        self._read_only = read_only
        self._written: Dict[str, Optional[bytes]] = {}
        self._session = session

    def _check(self) -> None:
        if not self._session:
            raise StateError(400, "the invocation has no session, so it has no state")

    def __getitem__(self, key: str) -> bytes:
        self._check()
        memory = self._memory
        if key not in memory.values and not memory.complete:
            memory.values[key] = self._bucket.get(key)
        value = memory.values.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: bytes) -> None:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"a value is bytes, not {type(value).__name__}")
        self._write(key, bytes(value))

    def __delitem__(self, key: str) -> None:
        self[key]
        self._write(key, None)

    def _write(self, key: str, value: Optional[bytes]) -> None:
        self._check()
        if self._read_only:
            raise StateError(403, "the invocation was declared read-only")
        self._memory.values[key] = value
        self._written[key] = value

    def __iter__(self) -> Iterator[str]:
        self._check()
        memory = self._memory
        if not memory.complete:
            # Not asked for again: those that are not known yet are read one by one.
            for key in self._bucket.keys():
                memory.values.setdefault(key, self._bucket.get(key))
            memory.complete = True
        present = [key for key, value in memory.values.items() if value is not None]
        return iter(sorted(present))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def frames(self) -> List[bytes]:
        """What was written, for the node."""
        frames: List[bytes] = []
        for key, value in self._written.items():
            if value is None:
                frames += [bytes([_wire.DELETE]), _wire.part(key.encode())]
            else:
                frames += [bytes([_wire.SET]), _wire.part(key.encode())]
                frames += [_wire.part(value)]
        return frames


class Context:
    """The invocation that runs."""

    def __init__(
        self, headers: Dict[str, str], client: _wire.Client, memory: Memory
    ) -> None:
        #: Identifier of the invocation.
        self.invocation: str = headers.get("fulmar-invocation", "")
        #: The function's name.
        self.function: str = headers.get("fulmar-function", "")
        session = headers.get("fulmar-session")
        #: The session's name, if there is one.
        self.session: Optional[str] = (
            session.encode("latin-1").decode() if session is not None else None
        )
        #: 1 for the first try.
        self.attempt: int = int(headers.get("fulmar-attempt", "1"))
        #: When the invocation is cut off, in milliseconds since the Unix epoch.
        self.deadline_unix_ms: int = int(headers.get("fulmar-deadline-unix-ms", "0"))
        #: The client's idempotency key, if it sent one.
        self.idempotency_key: Optional[str] = headers.get("idempotency-key")
        #: Whether writes are refused.
        self.read_only: bool = headers.get("fulmar-read-only") == "true"
        #: The session's state.
        self.state: State = State(
            client, memory, self.read_only, self.invocation, session is not None
        )
        self._client = client
        self._sent: List[bytes] = []

    def shared(self, bucket: str) -> Bucket:
        """A bucket that all functions of the namespace share."""
        return Bucket(self._client, bucket, self.invocation)

    def send(self, function: str, body: bytes, session: Optional[str] = None) -> None:
        """Sends a message to a function, with the commit: once, and only if there is one."""
        self._sent += [bytes([_wire.SEND]), _wire.part(function.encode())]
        self._sent += [_wire.part((session or "").encode()), _wire.part(bytes(body))]

    def choose_model(self, model: str) -> None:
        """Has the session's state live elsewhere from the commit on.

        ``model`` is ``auto``, ``in-function``, ``in-edge`` or ``external``; the manifest has to leave the choice.
        """
        body = model.encode()
        status, answer = self._client.ask("PUT", "/model", body, self.invocation)
        if status >= 300:
            raise StateError(status, answer.decode())

    def frames(self) -> bytes:
        """What the handler has done, for the node."""
        return b"".join(self.state.frames() + self._sent)
