"""What the SDK does without a node: `python3 -m unittest discover -s tests`, in the folder above."""

import io
import pathlib
import socket
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "src"))

import fulmar  # noqa: E402
from fulmar import _context, _wire  # noqa: E402
from fulmar import _serve  # noqa: E402


class Node(_wire.Client):
    """A node that answers from a dictionary, and counts what it is asked."""

    def __init__(self, stored):
        super().__init__("")
        self.stored = stored
        self.asked = []

    def ask(self, method, path, body=b"", invocation=""):
        self.asked.append((method, path))
        if path.startswith("/buckets/session?"):
            after = path.partition("after=")[2]
            keys = sorted(key for key in self.stored if key > after)
            return 200, ("[" + ",".join(f'"{key}"' for key in keys) + "]").encode()
        key = path.rsplit("/", 1)[-1]
        if key in self.stored:
            return 200, self.stored[key]
        return 404, b""


def frame(kind, *parts):
    return bytes([kind]) + b"".join(_wire.part(part) for part in parts)


class Asking(unittest.TestCase):
    def test_a_connection_that_was_closed_is_made_again(self):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/node"
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()

            def answer():
                # One answer on each connection, but the last: that is closed without one.
                for last in (False, False, True):
                    connection, _ = listener.accept()
                    _wire.read_head(connection.makefile("rb"))
                    if not last:
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    connection.close()
                listener.close()

            node = threading.Thread(target=answer)
            node.start()
            client = _wire.Client(path)
            self.assertEqual(client.ask("GET", "/a"), (200, b"ok"))
            self.assertEqual(client.ask("GET", "/b"), (200, b"ok"))
            with self.assertRaises(OSError):
                client.ask("GET", "/c")
            node.join()


class Memory(unittest.TestCase):
    def test_frames_are_taken_over_in_their_order(self):
        memory = _context.Memory()
        memory.learn(
            frame(_wire.SET, b"old", b"1")
            + frame(_wire.FORGET)
            + frame(_wire.SET, "k\u00e4".encode(), b"\x00\xff")
            + frame(_wire.DELETE, b"gone")
            + frame(_wire.COMPLETE)
        )
        self.assertEqual(memory.values, {"k\u00e4": b"\x00\xff", "gone": None})
        self.assertTrue(memory.complete)
        with self.assertRaises(ValueError):
            memory.learn(b"\x09")


class State(unittest.TestCase):
    def test_what_was_read_once_is_not_asked_for_again(self):
        node = Node({"a": b"1"})
        state = _context.State(node, _context.Memory())
        self.assertEqual([state["a"], state["a"], state.get("b")], [b"1", b"1", None])
        self.assertEqual(len(node.asked), 2)
        self.assertEqual(list(state), ["a"])
        self.assertNotIn("c", state)

    def test_writes_are_seen_and_sent(self):
        state = _context.State(Node({"a": b"1"}), _context.Memory())
        state["b"] = b"2"
        del state["a"]
        self.assertEqual(dict(state), {"b": b"2"})
        sent = b"".join(state.frames())
        self.assertEqual(sent, frame(_wire.SET, b"b", b"2") + frame(_wire.DELETE, b"a"))
        with self.assertRaises(KeyError):
            del state["a"]
        with self.assertRaises(TypeError):
            state["c"] = "text"

    def test_read_only_invocations_write_nothing(self):
        state = _context.State(Node({}), _context.Memory(), read_only=True)
        with self.assertRaises(_context.StateError):
            state["a"] = b"1"


class Serving(unittest.TestCase):
    def answer(self, handler, body, headers=None, memories=None):
        headers = {"content-length": str(len(body)), "fulmar-session": "s", **(headers or {})}
        memories = {} if memories is None else memories
        head = ("POST /path HTTP/1.1", headers)
        answer = _serve._answer(handler, head, io.BytesIO(body), Node({}), memories)
        stream = io.BytesIO(answer)
        first, headers = _wire.read_head(stream)
        body = _wire.read_body(stream, headers)
        self.told = headers
        count = int(headers["fulmar-frames"])
        return first.split()[1], body[:count], body[count:]

    def test_frames_come_before_the_body_both_ways(self):
        def handle(request, ctx):
            ctx.state["n"] = request.body + ctx.state["n"]
            ctx.send("f", b"m")
            return "answer"

        frames = frame(_wire.SET, b"n", b"1") + frame(_wire.COMPLETE)
        headers = {"fulmar-frames": str(len(frames))}
        status, written, body = self.answer(handle, frames + b"x", headers)
        self.assertEqual((status, body), ("200", b"answer"))
        expected = frame(_wire.SET, b"n", b"x1") + frame(_wire.SEND, b"f", b"", b"m")
        self.assertEqual(written, expected)

    def test_what_raises_leaves_nothing(self):
        def handle(request, ctx):
            ctx.state["n"] = b"1"
            raise ValueError("expected in this test")

        memories = {}
        status, written, _ = self.answer(handle, b"", None, memories)
        self.assertEqual((status, written, memories), ("500", b"", {}))

    def test_answers_without_a_body_have_frames_all_the_same(self):
        def handle(request, ctx):
            ctx.state["method"] = request.method.encode()
            return fulmar.Response(b"not sent", 204)

        status, written, body = self.answer(handle, b"", {"fulmar-method": "HEAD"})
        self.assertEqual((status, body), ("200", b""))
        self.assertEqual(written, frame(_wire.SET, b"method", b"HEAD"))
        self.assertEqual(self.told["fulmar-status"], "204")

    def test_without_a_session_there_is_no_state(self):
        state = _context.State(Node({}), _context.Memory(), session=False)
        for use in (lambda: state["a"], lambda: list(state), lambda: state.update(a=b"1")):
            with self.assertRaises(_context.StateError):
                use()

    def test_bodies_in_chunks_are_whole(self):
        stream = io.BytesIO(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")
        body = _wire.read_body(stream, {"transfer-encoding": "chunked"})
        self.assertEqual(body, b"abcde")


if __name__ == "__main__":
    unittest.main()
