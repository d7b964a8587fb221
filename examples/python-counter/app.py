"""A counter per session in Python, made of plain WASI interfaces: nothing of Fulmar is in it.

GET answers the count; POST adds the body, a whole number (empty: 1), and answers the sum.
"""

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import atomics, store, streams, types

BUCKET = "session"
KEY = "count"
MAX_BODY = 64


class Refusal(Exception):
    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status
        self.text = text


class IncomingHandler(exports.IncomingHandler):
    def handle(
        self, request: types.IncomingRequest, response_out: types.ResponseOutparam
    ) -> None:
        try:
            status, text = 200, str(answer(request))
        except Refusal as refusal:
            status, text = refusal.status, refusal.text + "\n"
        except Err as error:
            status, text = refused(error.value)
        reply(response_out, status, text)


def answer(request: types.IncomingRequest) -> int:
    with store.open(BUCKET) as bucket:
        match request.method():
            case types.Method_Get():
                return int(bucket.get(KEY) or b"0")
            case types.Method_Post():
                return atomics.increment(bucket, KEY, delta(request))
            case _:
                raise Refusal(405, "use GET or POST")


def delta(request: types.IncomingRequest) -> int:
    body = b""
    with request.consume() as incoming, incoming.stream() as stream:
        try:
            while len(body) <= MAX_BODY:
                body += stream.blocking_read(MAX_BODY)
        except Err as error:
            if not isinstance(error.value, streams.StreamError_Closed):
                raise Refusal(400, "the body cannot be read") from None
    try:
        return int(body.strip() or b"1")
    except ValueError:
        raise Refusal(400, "the body is not a whole number") from None


def refused(error: object) -> tuple[int, str]:
    match error:
        case store.Error_NoSuchStore():
            return 400, "no session: use /fn/python-counter/SESSION\n"
        case store.Error_AccessDenied():
            return 403, "writing is not allowed here\n"
        case _:
            return 500, f"{error}\n"


def reply(out: types.ResponseOutparam, status: int, text: str) -> None:
    headers = types.Fields.from_list([("content-type", b"text/plain")])
    response = types.OutgoingResponse(headers)
    response.set_status_code(status)
    body = response.body()
    types.ResponseOutparam.set(out, Ok(response))
    with body.write() as stream:
        stream.blocking_write_and_flush(text.encode())
    types.OutgoingBody.finish(body, None)
