"""A counter for each session, as a program in Python.

Built with `pip install --target . ../../sdk/python`, so that the SDK is among its files.
"""

import fulmar


def handle(request: fulmar.Request, ctx: fulmar.Context) -> str:
    count = int(ctx.state.get("count", b"0")) + int(request.body or b"1")
    ctx.state["count"] = str(count).encode()
    return str(count)


fulmar.serve(handle)
