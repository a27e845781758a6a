"""Seeded VGG weights, and writers of every layout in which they may lie on disk.

A writer takes a Keras model of the VGG alone and a path without suffix; it returns the
path of what it wrote.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from allcls_jax.config import ModelName
from allcls_jax.models import vgg
from allcls_jax.models.weight_files import array_shapes

Arrays = dict[str, np.ndarray]
Writer = Callable[[Any, Path], Path]


def draw(variant: ModelName, *, top: bool = False, seed: int = 0) -> Arrays:
    """Returns random weights under which signals keep their size through the layers."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in array_shapes(variant, top=top).items():
        values = rng.standard_normal(shape, np.float32)
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
        arrays[name] = values * np.float32(scale)
    return arrays


@pytest.fixture(scope="session")
def draw_arrays() -> Callable[..., Arrays]:
    return draw


@pytest.fixture(scope="session")
def vgg19_arrays() -> Arrays:
    return draw(ModelName.VGG19)


@pytest.fixture(scope="session")
def tiny_arrays() -> Arrays:
    return draw(ModelName.TINY)


@contextlib.contextmanager
def zeros_first() -> Iterator[None]:
    """Lets Keras begin with zeros: compiling its random draws takes ten seconds."""
    import keras

    with pytest.MonkeyPatch.context() as patch:
        zeros = keras.initializers.Zeros()
        patch.setattr(
            keras.initializers.GlorotUniform,
            "__call__",
            lambda _, shape, dtype=None: zeros(shape, dtype),
        )
        yield


@pytest.fixture
def zero_init() -> Iterator[None]:
    """For tests in which all weights of a Keras model are set after it is made."""
    with zeros_first():
        yield


@pytest.fixture(scope="session")
def keras_vgg19(vgg19_arrays: Arrays) -> Any:
    """Keras' own VGG19 for 32 pixels with `vgg19_arrays`."""
    import keras

    with zeros_first():
        build: Any = keras.applications.VGG19  # its stub wants a name of weights
        model = build(weights=None, include_top=False, input_shape=(32, 32, 3))
    return set_arrays(model, vgg19_arrays)


@pytest.fixture(scope="session")
def keras_tiny(tiny_arrays: Arrays) -> Any:
    """The tiny network in Keras for 32 pixels with `tiny_arrays`."""
    import keras

    layers: list[Any] = [keras.Input((32, 32, 3))]
    for layer in vgg.conv_stack(ModelName.TINY):
        if isinstance(layer, vgg.Conv):
            layers.append(
                keras.layers.Conv2D(
                    layer.channels,
                    3,
                    padding="same",
                    activation="relu",
                    name=layer.name,
                )
            )
        else:
            layers.append(keras.layers.MaxPooling2D(name=layer.name))
    with zeros_first():
        model = keras.Sequential(layers, name="tiny")
    return set_arrays(model, tiny_arrays)


def set_arrays(model: Any, arrays: Arrays) -> Any:
    for layer in model.layers:
        if layer.weights:
            kernel, bias = arrays[f"{layer.name}/kernel"], arrays[f"{layer.name}/bias"]
            layer.set_weights([kernel, bias])
    return model


def with_head(model: Any) -> Any:
    """Returns the model as the first layer of a classifier of two classes."""
    import keras

    layers = keras.layers
    head: list[Any] = [
        layers.Flatten(),
        layers.Dense(8, name="dense_8"),
        layers.Dropout(0.5),
        layers.Dense(2, name="dense_9"),
    ]
    return keras.Sequential([keras.Input((32, 32, 3)), model, *head])


def _layer_names(model: Any) -> list[str]:
    return [layer.name for layer in model.layers if layer.weights]


def _h5(model: Any, path: Path, kernel: str, bias: str) -> Path:
    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in _layer_names(model)]
        for layer in _layer_names(model):
            group = file.create_group(layer)
            names = [name.format(layer) for name in (kernel, bias)]
            group.attrs["weight_names"] = [name.encode() for name in names]
            values = model.get_layer(layer).get_weights()
            for name, value in zip(names, values, strict=True):
                group[name] = value
    return path


def write_official(model: Any, path: Path) -> Path:
    """The layout of the files that Keras Applications publishes."""
    return _h5(model, path, "{}_W_1:0", "{}_b_1:0")


def write_keras2(model: Any, path: Path) -> Path:
    return _h5(model, path, "{0}/kernel:0", "{0}/bias:0")


def write_keras2_nested(model: Any, path: Path) -> Path:
    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        for layer in _layer_names(model):
            kernel, bias = model.get_layer(layer).get_weights()
            file[f"model_weights/vgg/{layer}_1/kernel:0"] = kernel
            file[f"model_weights/vgg/{layer}_1/bias:0"] = bias
        file["model_weights/dense/dense/kernel:0"] = np.ones((8, 2), np.float32)
    return path


def write_keras3_legacy(model: Any, path: Path) -> Path:
    whole = write_whole_h5(model, path.with_name("whole"))
    path = path.with_suffix(".h5")
    with h5py.File(whole) as source, h5py.File(path, "w") as file:
        weights = source["model_weights"]
        assert isinstance(weights, h5py.Group)
        file.attrs.update(weights.attrs)
        for name in weights:
            source.copy(weights[name], file, name)
    whole.unlink()
    return path


def write_weights_h5(model: Any, path: Path) -> Path:
    path = path.with_name(f"{path.name}.weights.h5")
    model.save_weights(path)
    return path


def write_numbered(model: Any, path: Path) -> Path:
    """As the first versions of Keras 3: without the layers' names."""
    path = write_weights_h5(model, path)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, node: node.attrs.pop("name", None) and None)
    return path


def write_whole_h5(model: Any, path: Path) -> Path:
    path = path.with_suffix(".h5")
    model.save(path)
    return path


def write_keras(model: Any, path: Path) -> Path:
    path = path.with_suffix(".keras")
    model.save(path)
    return path


def _nested(write: Writer, depth: int = 1) -> Writer:
    def write_nested(model: Any, path: Path) -> Path:
        import keras

        outer = with_head(model)
        for _ in range(depth - 1):
            outer = keras.Sequential([keras.Input((32, 32, 3)), outer])
        return write(outer, path)

    return write_nested


WRITERS: dict[str, Writer] = {
    "official": write_official,
    "keras 2": write_keras2,
    "keras 2, nested": write_keras2_nested,
    "keras 3, legacy": write_keras3_legacy,
    ".weights.h5": write_weights_h5,
    ".weights.h5, numbered": write_numbered,
    "whole .h5": write_whole_h5,
    ".keras": write_keras,
    "nested .weights.h5": _nested(write_weights_h5),
    "nested .weights.h5, numbered": _nested(write_numbered),
    "nested .h5": _nested(write_whole_h5),
    "nested .keras": _nested(write_keras),
    "nested twice, .weights.h5": _nested(write_weights_h5, depth=2),
    "nested twice, .h5": _nested(write_whole_h5, depth=2),
}


@pytest.fixture(scope="session")
def writers() -> dict[str, Writer]:
    return WRITERS


def torch_names(arrays: Arrays, variant: ModelName, *, timm: bool) -> Arrays:
    """Returns Keras' arrays as the state dictionary of torchvision or timm."""
    places: dict[str, tuple[int, ...]] = {
        "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
        "tiny": (0, 3, 6, 9, 12),
    }
    convs = [name for name in arrays if name.endswith("/kernel") and "conv" in name]
    state = {}
    for place, name in zip(places[variant], convs, strict=True):
        state[f"features.{place}.weight"] = arrays[name].transpose(3, 2, 0, 1)
        bias = arrays[name.replace("kernel", "bias")]
        state[f"features.{place}.bias"] = bias
    if "fc1/kernel" in arrays:
        names = ("classifier.0", "classifier.3", "classifier.6")
        if timm:
            names = ("pre_logits.fc1", "pre_logits.fc2", "head.fc")
        first = arrays["fc1/kernel"].reshape(7, 7, -1, 4096).transpose(3, 2, 0, 1)
        second = arrays["fc2/kernel"].T
        if timm:
            second = second[:, :, None, None]
        else:
            first = first.reshape(4096, -1)
        kernels = (first, second, arrays["predictions/kernel"].T)
        for name, layer, kernel in zip(
            names, ("fc1", "fc2", "predictions"), kernels, strict=True
        ):
            state[f"{name}.weight"] = kernel
            state[f"{name}.bias"] = arrays[f"{layer}/bias"]
    # The writer of safetensors takes no other order of memory.
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


@pytest.fixture(scope="session")
def torch_state() -> Callable[..., Arrays]:
    return torch_names
