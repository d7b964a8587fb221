"""HTTP/1.1 and frames on Unix sockets, as little of both as is needed."""

from __future__ import annotations

import _thread
import socket
from typing import BinaryIO, Dict, List, Optional, Tuple

FORGET, SET, DELETE, COMPLETE, SEND = range(5)

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """Percent-encodes a name or key as one segment of a path."""
    return "".join(
        chr(byte) if byte in _PLAIN else "%%%02X" % byte for byte in text.encode()
    )


def read_head(stream: BinaryIO) -> Optional[Tuple[str, Dict[str, str]]]:
    """The first line of a message and its headers, in lower case; none at the end of the stream."""
    first = stream.readline(65537)
    if not first:
        return None
    headers: Dict[str, str] = {}
    while True:
        line = stream.readline(65537)
        if line in (b"\r\n", b"\n", b""):
            break
        name, _, value = line.decode("latin-1").partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return first.decode("latin-1").rstrip("\r\n"), headers


def read_body(stream: BinaryIO, headers: Dict[str, str]) -> bytes:
    """The body of a message, whole."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        parts: List[bytes] = []
        while True:
            size = int(stream.readline(65537).split(b";")[0], 16)
            if size == 0:
                while stream.readline(65537) not in (b"\r\n", b"\n", b""):
                    pass
                return b"".join(parts)
            parts.append(_exactly(stream, size))
            stream.readline(65537)
    return _exactly(stream, int(headers.get("content-length", "0")))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    body = stream.read(size)
    if len(body) < size:
        raise ConnectionError("the connection ended in the middle of a message")
    return body


def part(data: bytes) -> bytes:
    """A key or value in a frame."""
    return len(data).to_bytes(4, "big") + data


class Client:
    """Asks the node, over a connection that stays open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream: Optional[BinaryIO] = None
        self._socket: Optional[socket.socket] = None
        # Handlers may have threads.
        self._alone = _thread.allocate_lock()

    def ask(
        self, method: str, path: str, body: bytes = b"", invocation: str = ""
    ) -> Tuple[int, bytes]:
        """The status and body of the answer, on behalf of an invocation."""
        with self._alone:
            return self._ask(method, path, body, invocation)

    def _ask(
        self, method: str, path: str, body: bytes, invocation: str
    ) -> Tuple[int, bytes]:
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: fulmar\r\n"
            f"fulmar-invocation: {invocation}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        # An open connection may have been closed since, and then has not taken the question.
        attempts = 1 if self._socket is None else 2
        while True:
            attempts -= 1
            try:
                connection, stream = self._connect()
                connection.sendall(head.encode() + body)
                answer = read_head(stream)
            except ConnectionError:
                answer = None
            if answer is not None:
                break
            self._close()
            if attempts == 0:
                raise ConnectionError("the node has closed the connection")
        first, headers = answer
        try:
            return int(first.split(" ")[1]), read_body(stream, headers)
        except (OSError, ValueError):
            # What is left of the answer must not be taken for the next one.
            self._close()
            raise

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._stream = None

    def _connect(self) -> Tuple[socket.socket, BinaryIO]:
        if self._socket is None or self._stream is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(self._path)
            self._stream = self._socket.makefile("rb")
        return self._socket, self._stream
