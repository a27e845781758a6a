"""What the formats of an export share, and the check that each file has to pass.

A file is run in the runtime that will run it elsewhere, on the cells whose outputs the
model keeps; if they differ, there is no file.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allcls_jax import DISCLAIMER
from allcls_jax.experiments.model_directory import CheckCells
from allcls_jax.serving.model import Model

TOLERANCE = 1e-4  # absolute, of logits and of probabilities
BATCH_SIZES = (1, 16)

NO_DEVICE = "not run: no such device here"

# JAX's names of what a file is made for.
JAX_PLATFORMS = ("cpu", "cuda", "tpu")

# (n, s, s, 3) uint8 RGB → logits (n, 2) and probability (n,), both float32.
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class ExportDiffersError(RuntimeError):
    """An exported file computes something else than the model: a defect of ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file, and the runtime that it is for.

    Attributes:
      name: as the command line has it.
      suffix: that the file's name must have.
      runtime: package that runs the file.
      version: imports all that is needed and returns the runtime's version; raises
        `ImportError` if something is not installed.
      write: makes the file of a model.
      platforms: for which the file is made.
      open: loads the file on a platform; None if the platform is not here.
      load: how a user loads and runs FILE, in Python.
    """

    name: str
    suffix: str
    runtime: str
    version: Callable[[], str]
    write: Callable[[Model, Path], None]
    platforms: tuple[str, ...]
    open: Callable[[Path, str], Run | None]
    load: str


def facts(model: Model) -> dict[str, Any]:
    """Returns what a user of an exported file must know of the model, for JSON.

    The same model gives the same facts.
    """
    side = model.classifier.image_size
    own = model.record["model"]
    cut = {name: own[name] for name in ("max_side", "crop", "pack_size", "image_size")}
    return {
        "input": f"images (batch, {side}, {side}, 3) RGB, grey levels 0 to 255: one "
        "segmented cell each, on black, prepared as `preparation` says",
        "preparation": cut,
        "preprocessing": json.loads(model.classifier.preprocessing.to_json()),
        "output": "logits (batch, 2) in the order of `labels`, and probability "
        "(batch,) of the second label, calibrated with `temperature`",
        "labels": list(model.labels),
        "image_size": side,
        # Whose logits are averaged: by the file itself, or by who reads its parameters.
        "views": model.classifier.views,
        "temperature": model.classifier.temperature,
        "thresholds": dict(model.thresholds),
        "default_threshold": model.default_threshold,
        "model_sha256": model.sha256,
        "notes": list(model.notes),
        "disclaimer": DISCLAIMER,
    }


def facts_as_text(model: Model) -> dict[str, str]:
    """Returns `facts` for formats whose metadata are strings; others become JSON."""
    return {
        name: fact if isinstance(fact, str) else json.dumps(fact)
        for name, fact in facts(model).items()
    }


def host_params(model: Model) -> dict[str, dict[str, np.ndarray]]:
    """Returns the parameters as contiguous float32 arrays of the host."""
    return {
        layer: {
            name: np.ascontiguousarray(array, np.float32)
            for name, array in arrays.items()
        }
        for layer, arrays in model.classifier.params.items()
    }


def jax_device(platform: str) -> Any:
    """Returns a device of one of `JAX_PLATFORMS`, or None if JAX finds none here."""
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError:
        return None


def run_on(
    device: Any, compute: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> Run:
    """Returns what runs images on a device of JAX, as exactly as it can."""

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Accelerators would otherwise round float32 products.
        with jax.default_matmul_precision("float32"):
            logits, probability = compute(jax.device_put(images, device))
        return np.asarray(logits), np.asarray(probability)

    return run


def check(exported: Format, path: Path, cells: CheckCells) -> dict[str, Any]:
    """Runs a file on every platform that is here, and compares.

    Args:
      exported: the file's format.
      path: the file.
      cells: images, and what the model says of them.

    Returns:
      Platform → the largest differences of `logits` and `probability`, or
      `NO_DEVICE`.

    Raises:
      ExportDiffersError: if one is larger than `TOLERANCE`, or not a number, or an
        output has another shape or type.
    """
    found: dict[str, Any] = {}
    for platform in exported.platforms:
        run = exported.open(path, platform)
        if run is None:
            found[platform] = NO_DEVICE
            continue
        worst = {"logits": 0.0, "probability": 0.0}
        for size in BATCH_SIZES:
            where = f"{exported.name} on {platform}, batches of {size}"
            for name, difference in _differences(run, cells, size, where).items():
                worst[name] = max(worst[name], difference)
        found[platform] = worst
    return found


def _differences(
    run: Run, cells: CheckCells, size: int, where: str
) -> dict[str, float]:
    starts = range(0, len(cells.images), size)
    outputs = [run(cells.images[start : start + size]) for start in starts]
    differences: dict[str, float] = {}
    wanted = {"logits": cells.logits, "probability": cells.probability}
    for (name, ours), parts in zip(
        wanted.items(), zip(*outputs, strict=True), strict=True
    ):
        kinds = {(part.dtype.name, part.shape[1:]) for part in parts}
        if kinds != {("float32", ours.shape[1:])} or sum(map(len, parts)) != len(ours):
            shapes = sorted({f"{part.dtype} {part.shape}" for part in parts})
            raise ExportDiffersError(
                f"{where}: {name} came out as {' and '.join(shapes)}, not as float32 "
                f"of {('n', *ours.shape[1:])}"
            )
        differences[name] = float(np.max(np.abs(np.concatenate(parts) - ours)))
    # Written so that a difference that is not a number fails too.
    if not all(difference <= TOLERANCE for difference in differences.values()):
        both = " and ".join(f"{name} by {d:.1e}" for name, d in differences.items())
        raise ExportDiffersError(
            f"{where}: differs from the model on its check cells, {both}; at most "
            f"{TOLERANCE:g} is allowed"
        )
    return differences
