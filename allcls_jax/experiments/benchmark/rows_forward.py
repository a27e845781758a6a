"""Rows of the forward pass, and of a network that predicts."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.config import ModelName
from allcls_jax.data import pipeline
from allcls_jax.experiments.benchmark import bench as benches
from allcls_jax.experiments.benchmark import timing
from allcls_jax.experiments.benchmark.bench import Bench
from allcls_jax.experiments.benchmark.peer_networks import FORWARD, sample
from allcls_jax.experiments.benchmark.record import Figure, Row
from allcls_jax.models import vgg
from allcls_jax.models.preprocessing import CAFFE
from allcls_jax.training import inputs, steps, whole

PEERS = tuple(FORWARD)

# Relative difference (L2) up to which features are taken for the same.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def forward(bench: Bench) -> Iterator[Row]:
    """Yields the convolutional stack against peers, and its share of the ceiling."""
    for model in bench.sizes.models:
        batches = bench.sizes.forward_batches
        keys = (f"forward {model}", f"forward {model} large")[: len(batches)]
        for key, batch in zip(keys, batches, strict=True):
            yield from _forward(bench, key, model, batch)


def prediction(bench: Bench) -> Iterator[Row]:
    """Yields images per second from the pack to probabilities."""
    sizes = bench.sizes
    opened = bench.recipe(sizes.predicted)
    network, config = opened.network, opened.config
    batch = inputs.forward_batch_size(config, network)
    eval_step = steps.make_eval_step(
        network.model, network.preprocessing, network.shardings
    )
    rows = opened.rows

    def predict() -> Any:
        batches = pipeline.evaluation_batches(
            opened.images, opened.cells.table, rows, inputs.reading_of(config, batch)
        )
        return whole.evaluate(network.params, eval_step, network.shardings, batches)

    predict()
    taken = [timing.seconds(predict) for _ in range(sizes.repeats)]
    yield bench.row(
        "prediction",
        settings=f"{bench.model}, {len(rows):,} images, batch {batch}, {sizes.dtype}",
        unit="images/s",
        ours=timing.figure(taken, count=len(rows)),
    )


def stack_flops(model: ModelName, image_size: int) -> int:
    """Returns the floating-point operations of the stack on one image, as convolved.

    A convolution that saves some, as Winograd's does, is credited with all of them.
    """
    layers = vgg.conv_stack(model)
    channels, total = 3, 0
    for layer, row in zip(layers, vgg.layer_table(layers, image_size)[1:], strict=True):
        if isinstance(layer, vgg.Conv):
            pixels = row.shape[0] * row.shape[1]
            total += 2 * 9 * channels * layer.channels * pixels
            channels = layer.channels
    return total


def stack_as_data(model: ModelName) -> list[tuple[str, str, int]]:
    """Returns the stack as workers are told it: kind, name, channels."""
    return [
        ("conv", layer.name, layer.channels)
        if isinstance(layer, vgg.Conv)
        else ("pool", layer.name, 0)
        for layer in vgg.conv_stack(model)
    ]


def save_weights(bench: Bench, model: ModelName, params: vgg.Params) -> str:
    """Writes weights for workers, and returns their file."""
    path = bench.folder / f"{model}.npz"
    arrays = {k: np.asarray(v) for k, v in vgg.flatten_params(params).items()}
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def _forward(bench: Bench, key: str, model: ModelName, batch: int) -> Iterator[Row]:
    sizes = bench.sizes
    dtype = jnp.dtype(sizes.dtype)
    network = vgg.VGG(vgg.conv_stack(model), dtype=dtype)
    params = vgg.init_params(vgg.param_shapes(network, sizes.image_size), seed=0)
    grey = np.random.default_rng(0).integers(
        0, 256, (batch, sizes.image_size, sizes.image_size, 3), np.uint8
    )
    images = CAFFE(grey)
    given = {
        "task": "forward",
        "gpu": bench.gpu,
        "layers": stack_as_data(model),
        "weights": save_weights(bench, model, params),
        "images": bench.save(f"images-{batch}", np.asarray(images)),
        "dtype": sizes.dtype,
        "times": sizes.times,
    }
    run = jax.jit(lambda params, images: network.apply({"params": params}, images)[0])
    ready = images.astype(dtype)
    expected = sample(run(params, ready).astype(jnp.float32))
    ours, peers = benches.side_by_side(
        functools.partial(run, params, ready),
        {name: {**given, "peer": name} for name in PEERS},
        times=sizes.times,
        repeats=sizes.repeats,
        count=batch,
        check=functools.partial(_compare, expected, _TOLERANCE[sizes.dtype]),
    )
    settings = f"batch {batch}, {sizes.dtype}, {sizes.image_size} px"
    best = benches.fastest(peers, ("torch", "torch compiled"))
    yield bench.row(
        key,
        settings=settings,
        unit="images/s",
        ours=ours,
        peers=peers,
        against=best if bench.gpu else "torch",
    )
    assert ours.value is not None, "we are always measured"
    flops = stack_flops(model, sizes.image_size) * ours.value
    yield bench.row(
        f"{key} share",
        settings=f"{settings}; {flops / 1e12:.3g} of "
        f"{bench.ceilings.matmul / 1e12:.3g} TFLOP/s",
        unit="",
        ours=Figure(flops / bench.ceilings.matmul, count=ours.count),
    )


def _compare(expected: list[float], tolerance: float, ready: dict[str, Any]) -> str:
    """Returns what is wrong with features that a peer told of, or nothing."""
    found, wanted = np.array(ready["sample"]), np.array(expected)
    if found.shape != wanted.shape:
        return "computes something else"
    difference = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    if not difference <= tolerance:
        return f"computes something else: relative difference {difference:.2g}"
    return ""
