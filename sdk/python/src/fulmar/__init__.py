"""Functions for Fulmar, in Python.

A function is a handler that is given a request and a context, and that is served until the node ends it::

    import fulmar

    def handle(request, ctx):
        count = int(ctx.state.get("count", b"0")) + 1
        ctx.state["count"] = str(count).encode()
        return str(count)

    fulmar.serve(handle)

One invocation runs at a time. What it writes and sends is committed together with its answer; if the handler raises,
none of it happens. What a session's state is between two invocations is remembered here: the node sends what has
changed, and is sent what the handler changes.
"""

from ._context import Bucket, Context, State, StateError
from ._serve import Request, Response, serve

__all__ = ["Bucket", "Context", "Request", "Response", "State", "StateError", "serve"]
