"""``detect`` as a program: the people in one frame of one camera, with NumPy and OpenCV.

What differs from the background is found as the component does it (``core/src/background.rs``, ``mask.rs``). What explains it is
simpler: one person for each component that is as high as it is wide or more, several side by side for wider ones.
"""

import json
import time

import cv2
import fulmar
import numpy as np

BUCKET = "mvot"
WORKING_WIDTH = 640
MIN_COMPONENT = 20
# As in core/src/background.rs.
MIN_THRESHOLD, MAX_THRESHOLD, NOISE_FACTOR, DARKEST_SHADOW, SAMPLE_STEP = 16, 60, 4.5, 80, 7
# How wide people are, of how high.
WIDTH_OF_HEIGHT = 0.42

ready: dict[str, tuple[bytes, np.ndarray]] = {}


def handle(request: fulmar.Request, ctx: fulmar.Context) -> str:
    started = time.perf_counter()
    header, png = decode(request.body)
    then = header.get("then", "aggregate")
    frame = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    detections = [] if then == "collect" else detect(shrink(frame), background(header, ctx), frame.shape)
    view = {
        "camera": header["camera"],
        "step": header["step"],
        "sent_unix_ms": header["sent_unix_ms"],
        "detect_micros": int((time.perf_counter() - started) * 1e6),
        "detections": detections,
    }
    if then != "answer":
        message = json.dumps({"request": "view", **view}).encode()
        ctx.send(then, message, session=header["scene"])
    return json.dumps(view)


def decode(event: bytes) -> tuple[dict, bytes]:
    if event[:4] != b"MVF1":
        raise ValueError("a frame event begins with MVF1")
    end = 8 + int.from_bytes(event[4:8], "little")
    return json.loads(event[8:end]), event[end:]


def background(header: dict, ctx: fulmar.Context) -> np.ndarray:
    """The camera's background at working size: the one at hand if the bucket still says the same."""
    bucket = ctx.shared(BUCKET)
    name = f"{header['scene']}/{header['camera']}"
    record = bucket.get(f"{name}/camera")
    if record is None:
        raise ValueError(f"bucket {BUCKET!r} has no calibration of {name}: put it there first")
    known = ready.get(name)
    if known is None or known[0] != record:
        png = bucket.get(f"{name}/background")
        known = (record, cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR))
        ready[name] = known
    return known[1]


def shrink(frame: np.ndarray) -> np.ndarray:
    factor = max(1, -(-frame.shape[1] // WORKING_WIDTH))
    size = (frame.shape[1] // factor, frame.shape[0] // factor)
    return frame if factor == 1 else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def difference(frame: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Pixels that differ from the background, after allowing for a change of the light and for noise; not faint shadows."""
    some_frame = frame.reshape(-1, 3)[::SAMPLE_STEP].astype(np.float32)
    some_empty = empty.reshape(-1, 3)[::SAMPLE_STEP].astype(np.float32)
    lit = np.empty_like(empty)
    for channel in range(3):
        f, b = some_frame[:, channel], some_empty[:, channel]
        usable = (b >= 24) & (f < 250)
        gain = float(np.median(f[usable] / b[usable])) if usable.any() else 1.0
        table = np.clip(np.rint(np.arange(256) * gain), 0, 255).astype(np.uint8)
        lit[:, :, channel] = cv2.LUT(empty[:, :, channel], table)
    differs = cv2.absdiff(frame, lit)
    sigma = float(np.median(differs.reshape(-1, 3)[::SAMPLE_STEP])) * 1.4826
    threshold = int(np.clip(sigma * NOISE_FACTOR, MIN_THRESHOLD, MAX_THRESHOLD))
    mask = differs.max(axis=2) > threshold
    light = frame.sum(axis=2, dtype=np.int32)
    full = np.maximum(lit.sum(axis=2, dtype=np.int32), 1)
    expected = lit.astype(np.int32) * light[:, :, None] // full[:, :, None]
    near = (np.abs(frame.astype(np.int32) - expected) * 10 <= threshold * 6).all(axis=2)
    shadow = (light < full) & (light * 100 >= full * DARKEST_SHADOW) & near
    return (mask & ~shadow).astype(np.uint8)


def detect(frame: np.ndarray, empty: np.ndarray, shape: tuple) -> list[dict]:
    factor = shape[1] // frame.shape[1]
    mask = cv2.medianBlur(difference(frame, empty), 3)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 3), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    detections = []
    for left, top, width, height, area in stats[1:].tolist():
        if area < MIN_COMPONENT or height < 10:
            continue
        side_by_side = max(1, round(width / max(WIDTH_OF_HEIGHT * height, 1)))
        each = width / side_by_side
        for n in range(side_by_side):
            x = left + n * each
            detections.append(
                {
                    "foot": [round((x + each / 2) * factor, 2), round((top + height) * factor, 2)],
                    "sigma": [round((0.5 + 0.1 * each) * factor, 2), round((0.6 + 0.03 * height) * factor, 2)],
                    "bbox": [float(x * factor), float(top * factor), float(each * factor), float(height * factor)],
                    "visible": round(min(1.0, float(area) / (width * height)), 2),
                }
            )
    return detections[:256]


fulmar.serve(handle)
