"""Serving a handler on the socket that the node has given."""

from __future__ import annotations

import os
import socket
import sys
from typing import Callable, Dict, Mapping, NoReturn, Optional, Union

from . import _wire
from ._context import Context, Memory, StateError


class Request:
    """What the client sent, whole."""

    def __init__(
        self, method: str, path: str, headers: Dict[str, str], body: bytes
    ) -> None:
        #: ``POST``, ``GET`` and so on.
        self.method = method
        #: Path and query below the function.
        self.path = path
        #: Names in lower case.
        self.headers = headers
        self.body = body


class Response:
    """What the client gets."""

    def __init__(
        self,
        body: Union[bytes, str] = b"",
        status: int = 200,
        headers: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.body = body.encode() if isinstance(body, str) else bytes(body)
        self.status = status
        self.headers = dict(headers or {})


Answer = Union[Response, bytes, str, None]
Handler = Callable[[Request, Context], Answer]


def serve(handler: Handler) -> NoReturn:
    """Serves a handler until the node ends the worker."""
    path = os.environ.get("FULMAR_SOCKET")
    if path is None:
        sys.exit("FULMAR_SOCKET is not set: this is run by a node, see `fulmar deploy`")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    client = _wire.Client(os.environ.get("FULMAR_STATE_SOCKET", ""))
    memories: Dict[Optional[str], Memory] = {}
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            while True:
                head = _wire.read_head(stream)
                if head is None:
                    break
                connection.sendall(_answer(handler, head, stream, client, memories))


def _answer(handler, head, stream, client, memories) -> bytes:  # type: ignore[no-untyped-def]
    first, headers = head
    method, path, _ = first.split(" ", 2)
    body = _wire.read_body(stream, headers)
    session = headers.get("fulmar-session")
    # The node knows what is remembered here, and says what is to be forgotten.
    memories.pop(headers.pop("fulmar-forget", None), None)
    memory = Memory() if session is None else memories.setdefault(session, Memory())
    count = int(headers.pop("fulmar-frames", "0"))
    memory.learn(body[:count])
    wire_method, method = method, headers.pop("fulmar-method", method)
    ctx = Context(headers, client, memory)
    frames = b""
    try:
        answer = handler(Request(method, path, headers, body[count:]), ctx)
        response = answer if isinstance(answer, Response) else Response(answer or b"")
        if response.status < 500:
            frames = ctx.frames()
        if frames and wire_method == "HEAD":
            raise StateError(403, "a HEAD request writes nothing")
    except Exception as error:
        # What it wrote does not happen, and is not to be remembered.
        memories.pop(session, None)
        frames = b""
        response = _failed(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Some answers have no body on their way, and frames need one.
    has_no_body = response.status in (204, 304) or method == "HEAD"
    lines = [f"HTTP/1.1 {200 if frames else response.status} ."]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    lines += ["fulmar-protocol: 1", f"fulmar-frames: {len(frames)}"]
    if frames:
        lines += [f"fulmar-status: {response.status}"]
    content = frames + (b"" if has_no_body else response.body)
    lines += [f"content-length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def _failed(error: Exception) -> Response:
    if isinstance(error, StateError):
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return Response(str(error), 500)
    import traceback

    traceback.print_exc()
    return Response("the handler raised an exception; see the function's log", 500)
