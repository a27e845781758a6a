"""Keras: the way back, a whole model that Keras 3 loads without this package.

It takes RGB grey levels, does the preprocessing itself and gives `logits` and the
calibrated `probability`, of as many views of an image as the model. Layers and weights
have the names that Keras' own VGG has, and dropout is kept, so that training can go on
there.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allcls_jax.data import stain
from allcls_jax.data.cells import ALL, HEM
from allcls_jax.models import test_time_views, vgg
from allcls_jax.models.convert import import_keras
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.serving.exports.check import (
    JAX_PLATFORMS,
    Format,
    Run,
    host_params,
    jax_device,
)
from allcls_jax.serving.model import Model


def build(model: Model) -> Any:
    """Returns a `keras.Model` of layers that Keras has.

    Its input is `images` (batch, s, s, 3) RGB, grey levels from 0 to 255 of any type;
    its output a dictionary of `logits` (batch, 2) and `probability` (batch,), float32.
    """
    keras = import_keras()
    classifier = model.classifier
    side = classifier.image_size
    dropout = float(model.record["config"]["model"]["dropout"])
    images = keras.Input((side, side, 3), name="images", dtype="float32")
    x = _preprocess(keras, images, classifier.preprocessing)
    if classifier.views > 1:
        x = _views(keras, x, classifier.views)
    pooled: dict[str, Any] = {}
    for layer in classifier.model.layers:
        if isinstance(layer, vgg.BlockAverages):
            means = [
                keras.ops.mean(pooled[name], axis=(1, 2)) for name in layer.poolings
            ]
            x = keras.ops.log1p(keras.ops.concatenate(means, axis=-1))
            continue
        x = _layer(keras, layer, dropout=dropout)(x)
        if isinstance(layer, vgg.MaxPool):
            pooled[layer.name] = x
    if classifier.views > 1:
        each = keras.ops.reshape(x, (classifier.views, -1, vgg.NUM_CLASSES))
        x = keras.ops.mean(each, axis=0)
    difference = x[:, ALL] - x[:, HEM]
    probability = keras.ops.sigmoid(difference / classifier.temperature)
    made = keras.Model(
        images, {"logits": x, "probability": probability}, name="allcls_jax"
    )
    for name, arrays in host_params(model).items():
        layer = made.get_layer(name)
        layer.set_weights([arrays["kernel"], arrays["bias"]])
        # Zeros were for speed; whoever trains a copy anew wants Keras' own start.
        layer.kernel_initializer = keras.initializers.GlorotUniform()
    return made


def _preprocess(keras: Any, images: Any, preprocessing: Preprocessing) -> Any:
    """Normalises cells where that is asked for, reorders channels and scales.

    The layer keeps mean and variance as weights that no training changes, and its name
    the order of channels: by these `read_weights` knows what the network expects.
    """
    if preprocessing.normalise_stain:
        images = stain.normalise_by(keras.ops, images)
    order = preprocessing.channel_order
    layer = keras.layers.Normalization(name=f"preprocessing_{order}", dtype="float32")
    x = keras.ops.flip(images, axis=-1) if order == "bgr" else images
    x = layer(x)
    mean = np.array(preprocessing.mean, np.float32)
    variance = np.array(preprocessing.scale, np.float64) ** -2
    layer.set_weights([mean, variance.astype(np.float32), np.array(0)])
    layer.finalize_state()
    return x


def _views(keras: Any, x: Any, views: int) -> Any:
    """Returns flips and quarter turns of all images, one view behind the other."""
    test_time_views.refuse_other_angles(views, FORMAT.name)
    for axis in (1, 2):
        x = keras.ops.concatenate([x, keras.ops.flip(x, axis=axis)], axis=0)
    # With the diagonal these are all eight of a square.
    turned = keras.ops.transpose(x, (0, 2, 1, 3))
    return keras.ops.concatenate([x, turned], axis=0)


def _layer(keras: Any, layer: vgg.Layer, *, dropout: float) -> Any:
    layers, name = keras.layers, layer.name
    # A user's own defaults of Keras must not change the network.
    fixed = {"name": name, "dtype": "float32"}
    order = {"data_format": "channels_last"}
    match layer:
        case vgg.Conv(_, channels):
            return layers.Conv2D(
                channels,
                3,
                padding="same",
                activation="relu",
                kernel_initializer="zeros",
                **fixed,
                **order,
            )
        case vgg.MaxPool():
            return layers.MaxPooling2D(2, **fixed, **order)
        case vgg.Flatten():
            return layers.Flatten(**fixed, **order)
        case vgg.GlobalAveragePool():
            return layers.GlobalAveragePooling2D(**fixed, **order)
        case vgg.Dense(_, units, relu):
            return layers.Dense(
                units,
                activation="relu" if relu else None,
                kernel_initializer="zeros",
                **fixed,
            )
        case vgg.Dropout():
            return layers.Dropout(dropout, **fixed)
        case vgg.BlockAverages() | vgg.Standardise():
            raise AssertionError("made of operations; and a part of the dense layer")


def _write(model: Model, path: Path) -> None:
    build(model).save(path)


def _open(path: Path, platform: str) -> Run | None:
    device = jax_device(platform)
    if device is None:
        return None
    keras = import_keras()

    def here() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(jax.default_device(device))
        # Accelerators would otherwise round float32 products.
        stack.enter_context(jax.default_matmul_precision("float32"))
        return stack

    with here():
        loaded = keras.saving.load_model(path)

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with here():
            outputs = loaded.predict_on_batch(images)
        return np.asarray(outputs["logits"]), np.asarray(outputs["probability"])

    return run


FORMAT = Format(
    name="keras",
    suffix=".keras",
    runtime="keras",
    version=lambda: import_keras().__version__,
    write=_write,
    platforms=JAX_PLATFORMS,
    open=_open,
    load="keras.saving.load_model(FILE).predict(images)  "
    "# Keras as old as that of the check, or newer; any backend",
)
