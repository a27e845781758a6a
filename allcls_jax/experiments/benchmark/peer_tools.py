"""Decoding and resizing by the libraries that people use, on all cores."""

import importlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from allcls_jax.experiments.benchmark.peer_networks import (
    Ready,
    Settings,
    cores,
    timed,
)


def _pillow(settings: Settings) -> Ready:
    pillow: Any = importlib.import_module("PIL.Image")
    size = settings["size"], settings["size"]

    def one(data: bytes) -> Any:
        with pillow.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB").resize(size, pillow.Resampling.BILINEAR)

    return _of_all(one, settings, "bilinear, antialiased")


def _opencv(settings: Settings) -> Ready:
    opencv: Any = importlib.import_module("cv2")
    numpy: Any = importlib.import_module("numpy")
    opencv.setNumThreads(1)  # a thread of ours for each core is faster
    size = settings["size"], settings["size"]

    def one(data: bytes) -> Any:
        picture = opencv.imdecode(numpy.frombuffer(data, "u1"), opencv.IMREAD_COLOR)
        picture = opencv.cvtColor(picture, opencv.COLOR_BGR2RGB)
        return opencv.resize(picture, size, interpolation=opencv.INTER_AREA)

    return _of_all(one, settings, "mean over the area")


def _of_all(one: Callable[[bytes], Any], settings: Settings, note: str) -> Ready:
    files = [Path(name).read_bytes() for name in settings["files"]]

    def every() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(one, files):
                pass

    every()
    return {"note": note}, lambda _: timed(every)


DECODE: dict[str, Callable[[Settings], Ready]] = {"Pillow": _pillow, "OpenCV": _opencv}
