"""safetensors: the parameters, and all that is needed to compute with them, in a file.

Parameters have Keras' names and order of axes: `block1_conv1/kernel` is height, width,
in, out. One key of the metadata holds JSON: the layers in their order, preprocessing,
labels, temperature and thresholds. The part before the head, where it has all blocks,
is also what `--config.model.weights` takes.
"""

import dataclasses
import functools
import json
import typing
from pathlib import Path
from typing import Any

import jax
import safetensors
import safetensors.numpy

from allcls_jax.config import ModelName
from allcls_jax.errors import InputError
from allcls_jax.models import pretrained, test_time_views, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import preprocessing_from_json
from allcls_jax.models.weight_files import array_shapes, arrays_sha256
from allcls_jax.models.weight_layouts import METADATA_KEY
from allcls_jax.serving.exports.check import (
    JAX_PLATFORMS,
    Format,
    Run,
    facts,
    host_params,
    jax_device,
    run_on,
)
from allcls_jax.serving.model import Model

_LAYERS: dict[str, type[vgg.Layer]] = {
    kind.__name__: kind for kind in typing.get_args(vgg.Layer)
}


def read(path: Path) -> Classifier:
    """Returns the classifier of an exported file; it computes in float32.

    Raises:
      InputError: if the file is something else, or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            told = json.loads((file.metadata() or {})[METADATA_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = vgg.VGG(tuple(map(_layer, told["layers"])))
        side = int(told["image_size"])
        return Classifier(
            network,
            pretrained.merge(vgg.param_shapes(network, side), arrays),
            preprocessing_from_json(told["preprocessing"]),
            side,
            float(told["temperature"]),
            test_time_views.check(int(told.get("views", 1))),
        )
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        safetensors.SafetensorError,
    ) as error:
        raise InputError(
            f"{path}: is no classifier that was exported as safetensors, or is damaged "
            f"({type(error).__name__}: {error}); export it again with allcls export"
        ) from error


def _layer(fields: dict[str, Any]) -> vgg.Layer:
    """Returns a row of the table as it was before JSON, which has lists alone."""
    # Of a list the table would have no hash, which whoever compiles for it asks for.
    own: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if name != "layer"
    }
    return _LAYERS[fields["layer"]](**own)


def _write(model: Model, path: Path) -> None:
    arrays = vgg.flatten_params(host_params(model))
    variant = ModelName(model.record["model"]["name"])
    names = array_shapes(variant, top=False)
    stack = {name: arrays[name] for name in names if name in arrays}
    layers = [
        {"layer": type(layer).__name__, **dataclasses.asdict(layer)}
        for layer in model.classifier.model.layers
    ]
    told = {
        **facts(model),
        "layers": layers,
        # What the reader of weight files asks for.
        "variant": str(variant),
        "preprocessing": model.classifier.preprocessing.to_json(),
        "source_name": f"{variant} of allcls_jax",
        "source_sha256": model.sha256,
        "arrays_sha256": arrays_sha256(stack),
    }
    path.write_bytes(safetensors.numpy.save(arrays, {METADATA_KEY: json.dumps(told)}))


def _open(path: Path, platform: str) -> Run | None:
    device = jax_device(platform)
    if device is None:
        return None
    classifier = read(path)

    @jax.jit
    def compute(params: vgg.Params, images: jax.Array) -> Any:
        logits = classifier.logits(images, params)
        return logits, classifier.probability(logits)

    params = jax.device_put(classifier.params, device)
    return run_on(device, functools.partial(compute, params))


FORMAT = Format(
    name="safetensors",
    suffix=".safetensors",
    runtime="jax",
    version=lambda: jax.__version__,
    write=_write,
    platforms=JAX_PLATFORMS,
    open=_open,
    load="allcls_jax.serving.exports.to_safetensors.read(Path(FILE)).logits(images)",
)
