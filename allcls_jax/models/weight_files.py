"""VGG weights on disk: reads Keras' and torch's files, reads and writes our own.

Whatever the file's layout, arrays come out as float32 under Keras' names and in Keras'
order of axes (`block1_conv1/kernel` is height, width, in, out), complete and finite; a
file that cannot give that gives an `InputError`. What our own safetensors hold is what
was read, bit for bit, with where it came from and how its input is preprocessed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from allcls_jax.config import ModelName
from allcls_jax.data import files
from allcls_jax.errors import InputError, list_problems
from allcls_jax.models import vgg
from allcls_jax.models.preprocessing import Preprocessing, preprocessing_from_json
from allcls_jax.models.weight_layouts import (
    METADATA_KEY,
    SUPPORTED,
    TOP_SIDE,
    Entries,
    Entry,
    open_weights,
)

_FLOATS = frozenset(
    {"float16", "float32", "float64", "bfloat16", "F16", "F32", "F64", "BF16"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFile:
    """Weights of a VGG, and where they came from."""

    # `block1_conv1/kernel` → float32, contiguous: the convolutional stack, and `fc1`,
    # `fc2` and `predictions` if the file has all of the ImageNet classifier.
    arrays: dict[str, np.ndarray]
    variant: ModelName
    preprocessing: Preprocessing
    source_name: str  # of the file that the arrays first came from, without folder
    source_sha256: str  # of that file, hexadecimal
    ignored: tuple[str, ...] = ()  # other layers of that file, such as another head

    @property
    def has_top(self) -> bool:
        """Whether the ImageNet classifier is there."""
        return "predictions/kernel" in self.arrays

    @property
    def num_parameters(self) -> int:
        """Numbers in all arrays."""
        return sum(array.size for array in self.arrays.values())


def array_shapes(variant: ModelName, *, top: bool) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of a variant, in the network's order.

    Args:
      variant: the network.
      top: whether the ImageNet classifier, which needs 224 pixels, belongs to it.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for layer in vgg.conv_stack(variant):
        if isinstance(layer, vgg.Conv):
            shapes[f"{layer.name}/kernel"] = (3, 3, channels, layer.channels)
            shapes[f"{layer.name}/bias"] = (layer.channels,)
            channels = layer.channels
    units = TOP_SIDE**2 * channels
    for layer in vgg.imagenet_top() if top else ():
        if isinstance(layer, vgg.Dense):
            shapes[f"{layer.name}/kernel"] = (units, layer.units)
            shapes[f"{layer.name}/bias"] = (layer.units,)
            units = layer.units
    return shapes


def read_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Returns the VGG weights of a file, whose content tells its layout and variant.

    Read are Keras' `.h5` of any version, `.weights.h5` and `.keras`, with the VGG as
    the whole model or as a layer of another one, and safetensors of torchvision, timm
    and `write_safetensors`. Pickles are refused.

    Raises:
      InputError: naming the file, the cause and the remedy, if it cannot be read, is
        damaged or holds something else than one complete VGG.
    """
    path = Path(path).expanduser()
    with _causes_named(path):
        if not path.is_file():
            path.stat()  # raises if there is nothing
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise InputError(f"{path}: is {kind}; {SUPPORTED}")
        with open_weights(path) as found:
            variant = _variant(path, found.entries)
            entries = found.entries[variant]
            arrays = _read_arrays(path, variant, entries)
        if found.metadata is not None:
            return _with_origin(path, variant, arrays, found.metadata)
        if found.preprocessing is None:
            raise InputError(
                f"{path}: does not say how its input is preprocessed; {SUPPORTED}"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightFile(
        arrays=arrays,
        variant=variant,
        preprocessing=found.preprocessing,
        source_name=path.name,
        source_sha256=digest,
        ignored=_layers(name for name in entries if name not in arrays),
    )


def write_safetensors(weights: WeightFile, path: str | os.PathLike[str]) -> None:
    """Writes weights for `read_weights`; the file appears whole or not at all.

    The same weights give the same bytes.

    Raises:
      InputError: if the file cannot be written there.
    """
    path = Path(path).expanduser()
    arrays = {
        name: np.ascontiguousarray(array, np.float32)
        for name, array in weights.arrays.items()
    }
    origin = {
        "variant": str(weights.variant),
        "preprocessing": weights.preprocessing.to_json(),
        "source_name": weights.source_name,
        "source_sha256": weights.source_sha256,
        "arrays_sha256": arrays_sha256(arrays),
    }
    files.write(
        path, safetensors.numpy.save(arrays, {METADATA_KEY: json.dumps(origin)})
    )


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the digest that our files keep of the arrays that are read from them.

    Args:
      arrays: as in `WeightFile`, contiguous float32.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def _variant(path: Path, entries: Mapping[ModelName, Entries]) -> ModelName:
    """Returns the variant whose convolutional stack lies in a file."""
    problems = {
        variant: _stack_problems(entries[variant], variant) for variant in entries
    }
    best = min(problems, key=lambda variant: len(problems[variant]))
    if not problems[best]:
        return best
    shapes = array_shapes(best, top=False)
    fitting = sum(
        [entry.shape for entry in entries[best].get(name, [])] == [shape]
        for name, shape in shapes.items()
    )
    if fitting < len(shapes) / 2:
        layers = _layers(entries[best])
        shown = ", ".join(layers[:4]) + (", …" if len(layers) > 4 else "")
        raise InputError(
            f"{path}: holds no VGG16 or VGG19; its layers are {shown or 'none'}; "
            f"{SUPPORTED}"
        )
    raise list_problems(
        f"{path}: is not a whole {best.upper()}",
        problems[best],
        remedy="save or download the file again, with one whole network in it",
    )


def _stack_problems(entries: Entries, variant: ModelName) -> list[str]:
    """Returns what keeps arrays from being a variant's convolutional stack."""
    problems = []
    shapes = array_shapes(variant, top=False)
    for name, shape in shapes.items():
        match entries.get(name, []):
            case []:
                problems.append(f"{name}: is missing; must have shape {shape}")
            case [entry] if entry.shape != shape:
                problems.append(f"{name}: has shape {entry.shape}, must have {shape}")
            case [entry] if entry.dtype not in _FLOATS:
                problems.append(f"{name}: is of type {entry.dtype}, must be of float32")
            case [_]:
                pass
            case several:
                places = ", ".join(entry.where for entry in several)
                problems.append(f"{name}: is there {len(several)} times ({places})")
    problems += [
        f"{name}: is not part of {variant.upper()}"
        for name in entries
        if name.startswith(("block", "features.")) and name not in shapes
    ]
    return problems


def _layers(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition("/")[0] or name for name in names))


def _read_arrays(
    path: Path, variant: ModelName, entries: Entries
) -> dict[str, np.ndarray]:
    """Returns the convolutional stack, and the classifier if it is whole."""
    shapes = array_shapes(variant, top=True)
    fits = {
        name: len(entries.get(name, [])) == 1
        and entries[name][0].shape == shape
        and entries[name][0].dtype in _FLOATS
        for name, shape in shapes.items()
    }
    if not all(fits.values()):
        shapes = array_shapes(variant, top=False)
    arrays = {name: _read(entries[name][0]) for name in shapes}
    problems = [
        f"{name}: {bad} of {array.size} values are not finite"
        for name, array in arrays.items()
        if (bad := array.size - np.count_nonzero(np.isfinite(array)))
    ]
    if problems:
        raise list_problems(
            f"{path}: cannot be computed with",
            problems,
            remedy="take a file from before the training that diverged, or download it "
            "again",
        )
    return arrays


def _read(entry: Entry) -> np.ndarray:
    with np.errstate(over="ignore"):  # float64 beyond float32: reported as not finite
        return np.ascontiguousarray(entry.read(), np.float32)


def _with_origin(
    path: Path, variant: ModelName, arrays: dict[str, np.ndarray], metadata: str
) -> WeightFile:
    """Returns weights with what our own file says of them, if that is true."""
    try:
        origin = json.loads(metadata)
        written = WeightFile(
            arrays=arrays,
            variant=ModelName(origin["variant"]),
            preprocessing=preprocessing_from_json(origin["preprocessing"]),
            source_name=str(origin["source_name"]),
            source_sha256=str(origin["source_sha256"]),
        )
        digest = origin["arrays_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: its metadata are not understood ({error}); write it again with "
            "allcls convert"
        ) from error
    if written.variant != variant or digest != arrays_sha256(arrays):
        raise InputError(
            f"{path}: its arrays are not those that were written; write it again with "
            "allcls convert"
        )
    return written


@contextlib.contextmanager
def _causes_named(path: Path) -> Iterator[None]:
    """Turns what the readers raise for a bad file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: does not exist; {SUPPORTED}") from error
    except PermissionError as error:
        raise InputError(
            f"{path}: may not be read by this user; change its permissions"
        ) from error
    except _DAMAGED as error:
        raise InputError(
            f"{path}: is truncated or damaged ({_reason(error)}); save or download it "
            "again"
        ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# What h5py, safetensors, zipfile and zlib were seen to raise for damaged files.
_DAMAGED = (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
)
