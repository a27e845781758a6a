"""Where VGG's arrays lie in each kind of weight file, under Keras' names and order.

Nothing is ever unpickled or executed, no other file is followed, and an array's values
are read only when its reader is called, after its shape and type have been looked at.
"""

import contextlib
import dataclasses
import functools
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import safetensors

from allcls_jax.config import ModelName
from allcls_jax.errors import InputError
from allcls_jax.models import vgg
from allcls_jax.models.preprocessing import CAFFE, TORCH, Preprocessing

SUPPORTED = (
    "give a Keras file (.h5, .weights.h5 or .keras), or safetensors of torchvision, "
    "timm or allcls convert"
)

# The one key of our own metadata: several would be written in random order.
METADATA_KEY = "allcls_jax"

# Rows and columns that the ImageNet classifier sees: 224 pixels, halved five times.
TOP_SIDE = 7

_START = 512  # bytes by which the kind of a file is told

# A `.keras` file holds its weights in this member, the whole of which is read at once.
_KERAS_MEMBER = "model.weights.h5"
_KERAS_MEMBER_LIMIT = 4 << 30  # bytes; VGG19 with top and Adam's state takes 1.7 GB


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An array that has not been read yet, as it will look in Keras' order."""

    shape: tuple[int, ...]
    dtype: str
    where: str  # its name in the file
    read: Callable[[], np.ndarray]


# `block1_conv1/kernel` → the arrays of that name: one, if all is well. Layers that are
# not VGG's stand under names of their own.
Entries = dict[str, list[Entry]]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What lies in a file."""

    # Some layouts number their layers, so that names depend on the variant.
    entries: dict[ModelName, Entries]
    preprocessing: Preprocessing | None  # None: nothing in the layout tells
    metadata: str | None = None  # what `METADATA_KEY` says


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Found]:
    """Yields what lies in a file, whose readers work inside the block.

    The kind of file is told by its first bytes, not by its name.

    Raises:
      InputError: for a file of a kind that is not read.
      Exception: whatever h5py, safetensors and zipfile raise for a damaged file.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        with h5py.File(path) as hdf5:
            yield _keras(hdf5)
    elif start.startswith(b"PK\x03\x04"):
        with h5py.File(io.BytesIO(_keras_member(path))) as hdf5:
            yield _keras(hdf5)
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100 << 20:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            yield _safetensors(tensors)
    else:
        raise InputError(f"{path}: {_foreign_kind(start)}; {SUPPORTED}")


def _foreign_kind(start: bytes) -> str:
    """Returns what a file is that begins with these bytes and is not read."""
    if not start:
        return "is empty"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "is a pickle, which could run any code and is not read"
    if start.startswith(b"\x93NUMPY"):
        return "is a single numpy array"
    try:
        # The last character may be cut in two.
        text = start[: -4 if len(start) == _START else None].decode("utf8")
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" in text:
        return "is of an unknown kind, or damaged at its beginning"
    if '"weight_map"' in text or '"total_size"' in text:
        return "is the index of weights in several files; save them in one"
    line = text.strip().split("\n", 1)[0].strip()
    return f"is text and begins with {line[:60]!r}"


def _keras_member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if _KERAS_MEMBER not in names:
            kind = "is a zip archive without model.weights.h5"
            if any(name.endswith(".pkl") for name in names):
                kind = "is a pickle of PyTorch, which could run any code: not read"
            elif any(name.endswith(".npy") for name in names):
                kind = "is an archive of numpy arrays"
            raise InputError(f"{path}: {kind}; {SUPPORTED}")
        size = archive.getinfo(_KERAS_MEMBER).file_size
        if size > _KERAS_MEMBER_LIMIT:
            raise InputError(
                f"{path}: its {_KERAS_MEMBER} takes {size:,} bytes, more than the "
                f"{_KERAS_MEMBER_LIMIT:,} that are read; save the weights alone"
            )
        return archive.read(_KERAS_MEMBER)


# Keras. Legacy: `[model/…]block1_conv1/…/kernel`; Keras 3: `layers/conv2d_4/vars/0`.

# Old versions of TensorFlow made a name unique by adding _1.
_LAYER = re.compile(r"(block\d+_conv\d+|fc[12]|predictions)(?:_\d+)?")
_WEIGHT = re.compile(r"(?:\w+_([Wb])(?:_\d+)?|(kernel|bias))(?::\d+)?")
_WEIGHT_NAMES = {"W": "kernel", "b": "bias", "0": "kernel", "1": "bias"}
_PREPROCESSING = re.compile(r"preprocessing_(rgb|bgr)")
# Its moments are named like the weights.
_OPTIMIZER = frozenset({"optimizer", "optimizer_weights"})


@dataclasses.dataclass(frozen=True, slots=True)
class _KerasArray:
    layer: str | None  # None: the file numbers the layer and does not name it
    weight: str
    entry: Entry


def _keras(file: h5py.File) -> Found:
    """Returns what an HDF5 file of any version of Keras holds."""
    arrays: list[_KerasArray] = []

    # Hard links alone are visited: a file cannot make another one be read.
    def visit(path: str, node: h5py.Group | h5py.Dataset) -> None:
        parts = path.split("/")
        if not isinstance(node, h5py.Dataset) or not _OPTIMIZER.isdisjoint(parts):
            return
        entry = Entry(
            node.shape or (), str(node.dtype), path, functools.partial(_read, node)
        )
        layer, weight = parts[-2] if len(parts) > 1 else "", parts[-1]
        if layer == "vars":
            layer = node.parent.attrs.get("name")
            weight = _WEIGHT_NAMES.get(weight, weight)
        else:
            matches = (_LAYER.fullmatch(part) for part in reversed(parts[:-1]))
            layer = next((match[1] for match in matches if match), layer)
            if match := _WEIGHT.fullmatch(weight):
                weight = match[2] or _WEIGHT_NAMES[match[1]]
        arrays.append(_KerasArray(layer, weight, entry))

    file.visititems(visit)
    entries = {variant: _name_keras(arrays, variant) for variant in vgg.BLOCKS}
    return Found(entries, _preprocessing(arrays))


def _preprocessing(arrays: list[_KerasArray]) -> Preprocessing | None:
    """Returns what our own exports say with a layer that normalises, else Keras' own.

    The layer's name ends in the order of channels; None if it makes no sense.
    """
    found: dict[str, np.ndarray] = {}
    order: Literal["rgb", "bgr"] | None = None
    for array in arrays:
        if match := _PREPROCESSING.fullmatch(array.layer or ""):
            order = "bgr" if match[1] == "bgr" else "rgb"
            if array.entry.shape == (3,):
                found[array.weight] = np.asarray(array.entry.read(), np.float64)
    if order is None:
        return CAFFE
    mean = found.get("kernel", found.get("mean"))
    variance = found.get("bias", found.get("variance"))
    if mean is None or variance is None or not np.all(variance > 0):
        return None
    scale = variance**-0.5
    # Those that we know are known exactly, not as rounded to float32.
    for known in (CAFFE, TORCH):
        if known.channel_order == order and np.allclose(
            (mean, scale), (known.mean, known.scale), rtol=1e-6, atol=0
        ):
            return known
    return Preprocessing(order, tuple(mean.tolist()), tuple(scale.tolist()))


def _name_keras(arrays: list[_KerasArray], variant: ModelName) -> Entries:
    """Names every array, those of numbered layers by their order."""
    numbered = {_container(array) for array in arrays if array.layer is None}
    names = _name_numbered(numbered, variant)
    entries: Entries = {}
    for array in arrays:
        layer = array.layer
        if layer is None:
            layer = names.get(_container(array), _container(array).rpartition("/")[2])
        entries.setdefault(f"{layer}/{array.weight}", []).append(array.entry)
    return entries


def _container(array: _KerasArray) -> str:
    return array.entry.where.rpartition("/vars/")[0]


def _name_numbered(paths: set[str], variant: ModelName) -> dict[str, str]:
    """Returns names for the paths of layers that early versions of Keras 3 number.

    The numbers count the layers of a class in their order within one model.
    """
    convs = [
        layer.name for layer in vgg.conv_stack(variant) if isinstance(layer, vgg.Conv)
    ]
    top = [layer.name for layer in vgg.imagenet_top() if isinstance(layer, vgg.Dense)]
    models: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for path in paths:
        model, _, layer = path.rpartition("/")
        if match := re.fullmatch(r"(conv2d|dense)(?:_(\d+))?", layer):
            order = int(match[2] or 0)
            models.setdefault((model, match[1]), []).append((order, path))
    names: dict[str, str] = {}
    for (_, kind), layers in models.items():
        known = convs if kind == "conv2d" else top
        if len(layers) == len(known):
            paths_in_order = [path for _, path in sorted(layers)]
            names |= dict(zip(paths_in_order, known, strict=True))
    return names


def _read(dataset: h5py.Dataset) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"{dataset.name} of {dataset.file.filename} lies in another file; save the "
            "weights in one file"
        )
    return dataset[()]


# safetensors: our own, torchvision's and timm's.


def _safetensors(file: Any) -> Found:
    """Returns what an opened safetensors file holds."""
    metadata = (file.metadata() or {}).get(METADATA_KEY)
    keys = list(file.keys())
    if metadata is not None or not any(key.startswith("features.") for key in keys):
        own = {key: [_tensor(file, key)] for key in keys}
        return Found(dict.fromkeys(vgg.BLOCKS, own), None, metadata)
    entries: dict[ModelName, Entries] = {}
    for variant in vgg.BLOCKS:
        names = _torch_names(variant)
        entries[variant] = {}
        for key in keys:
            layer, _, kind = key.rpartition(".")
            weight = {"weight": "kernel"}.get(kind, kind)
            entry = _torch_order(_tensor(file, key), names.get(layer), variant)
            entries[variant][f"{names.get(layer, layer)}/{weight}"] = [entry]
    return Found(entries, TORCH)


def _tensor(file: Any, key: str) -> Entry:
    view = file.get_slice(key)
    shape = tuple(view.get_shape())
    return Entry(shape, view.get_dtype(), key, functools.partial(file.get_tensor, key))


def _torch_names(variant: ModelName) -> dict[str, str]:
    """Returns Keras' name for each of torchvision's and timm's."""
    names: dict[str, str] = {}
    place = 0
    for layer in vgg.conv_stack(variant):
        if isinstance(layer, vgg.Conv):
            names[f"features.{place}"] = layer.name
            place += 1  # the ReLU has a number of its own
        place += 1
    torchvision = {"classifier.0": "fc1", "classifier.3": "fc2"}
    timm = {"pre_logits.fc1": "fc1", "pre_logits.fc2": "fc2", "head.fc": "predictions"}
    return names | torchvision | timm | {"classifier.6": "predictions"}


def _torch_order(entry: Entry, layer: str | None, variant: ModelName) -> Entry:
    """Returns an array's entry with output channels last, as in Keras.

    The first dense layer of torch reads channels, rows, columns; that of Keras rows,
    columns, channels.
    """
    shape = entry.shape
    if layer is None or len(shape) not in (2, 4):
        return entry
    channels = vgg.BLOCKS[variant][-1][1]
    if layer == "fc1" and math.prod(shape[1:]) == TOP_SIDE**2 * channels:
        shape = (shape[0], channels, TOP_SIDE, TOP_SIDE)
    if len(shape) == 2:
        last, before = shape[::-1], (1, 0)
    else:
        last, before = (*shape[2:], shape[1], shape[0]), (2, 3, 1, 0)
    if layer.startswith("fc") or layer == "predictions":
        last = (math.prod(last[:-1]), last[-1])

    def read() -> np.ndarray:
        return entry.read().reshape(shape).transpose(before).reshape(last)

    return Entry(last, entry.dtype, entry.where, read)
