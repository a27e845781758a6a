"""StableHLO through `jax.export`: one file for CPUs, NVIDIA GPUs and TPUs.

Weights, preprocessing and calibration are inside, products are computed in full
float32, and the batch may have any size. Loading needs JAX alone, not this package:

    exported = jax.export.deserialize(bytearray(open(FILE, "rb").read()))
    logits, probability = exported.call(images)  # uint8 (n, s, s, 3), RGB

JAX reads what the same or an older version wrote, and promises that for six months
only: the model directory is what lasts.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from allcls_jax.serving.exports.check import (
    JAX_PLATFORMS,
    Format,
    Run,
    host_params,
    jax_device,
    run_on,
)
from allcls_jax.serving.model import Model


def build(model: Model) -> export.Exported:
    """Returns the function from images to logits and probability, lowered.

    The function takes (batch, s, s, 3) uint8 RGB and gives (batch, 2) and (batch,)
    float32, on any of `JAX_PLATFORMS`.
    """
    classifier = model.classifier
    params = host_params(model)

    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return classifier.plain(images, params)

    (batch,) = export.symbolic_shape("batch")
    side = classifier.image_size
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    # Accelerators would otherwise round float32 products.
    with jax.default_matmul_precision("float32"):
        return export.export(jax.jit(run), platforms=JAX_PLATFORMS)(images)


def _write(model: Model, path: Path) -> None:
    path.write_bytes(build(model).serialize())


def _open(path: Path, platform: str) -> Run | None:
    device = jax_device(platform)
    if device is None:
        return None
    return run_on(
        device, jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    )


FORMAT = Format(
    name="stablehlo",
    suffix=".stablehlo",
    runtime="jax",
    version=lambda: jax.__version__,
    write=_write,
    platforms=JAX_PLATFORMS,
    open=_open,
    load="jax.export.deserialize(bytearray(open(FILE, 'rb').read())).call(images)  "
    "# images uint8; JAX as old as that of the check, or newer",
)
