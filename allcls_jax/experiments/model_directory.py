"""What training leaves for use: a folder that holds all that a prediction needs.

`model.json` says what the model is and names every other file with its sha256;
`model.safetensors` has the parameters, `check_cells.safetensors` synthetic cells with
the outputs that they must give, `model_card.md` the words. The folder, or a zip of it,
is enough: neither the cells nor the pretrained weights are needed again.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from scipy import special

from allcls_jax import __version__
from allcls_jax.config import (
    ComputeDtype,
    HeadKind,
    ModelName,
)
from allcls_jax.data import (
    domain,
    transforms,
)
from allcls_jax.errors import InputError
from allcls_jax.models import pretrained, test_time_views, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import preprocessing_from_json
from allcls_jax.training.network import compute_dtype

FOLDER = "model"
RECORD_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
CHECK_FILE = "check_cells.safetensors"
CARD_FILE = "model_card.md"

FORMAT = 1  # of the folder; another one is refused with both versions named

NUM_CHECK_CELLS = 16
QUANTILES = 101  # of the validation probabilities that are kept, to abstain by
LABELS = ("HEM", "ALL")  # in the order of the logits


@dataclasses.dataclass(frozen=True, slots=True)
class CheckCells:
    """Synthetic cells, and what the model must say of them in float32.

    Attributes:
      images: (16, image_size, image_size, 3) uint8 RGB.
      logits: (16, 2) float32, in the order HEM, ALL.
      probability: (16,) float32, calibrated P(ALL).
    """

    images: np.ndarray
    logits: np.ndarray
    probability: np.ndarray


@dataclasses.dataclass(frozen=True)
class ModelDirectory:
    """What a model directory holds.

    Attributes:
      path: where it was found.
      classifier: the network, its convolutions in the type that the run had.
      thresholds: name → above which calibrated P(ALL) an image is called ALL.
      validation: (101,) quantiles of the validation images' calibrated P(ALL).
      domain: of the training cells.
      check: cells with the outputs that the model must give.
      notes: that belong beside every result.
      sha256: of `model.json`, which has those of all other files: of the whole model.
      record: the content of `model.json`.
    """

    path: Path
    classifier: Classifier
    thresholds: dict[str, float]
    validation: np.ndarray
    domain: domain.Domain
    check: CheckCells
    notes: tuple[str, ...]
    sha256: str
    record: dict[str, Any]


def read(path: Path) -> ModelDirectory:
    """Opens a model directory, a run's folder with one in it, or a zip of either.

    Raises:
      InputError: if there is no model, it is damaged, or another version's.
    """
    with _naming(path):
        root = _root(path)
        content = (root / RECORD_FILE).read_bytes()
        record = json.loads(content)
        _check_version(path, record)
        files: dict[str, bytes] = {}
        for name, sha256 in record["files"].items():
            files[name] = (root / name).read_bytes()
            if hashlib.sha256(files[name]).hexdigest() != sha256:
                raise InputError(
                    f"{path}: {name} is not what was written (sha256); copy the model "
                    "again"
                )
        return _build(path, files, record, hashlib.sha256(content).hexdigest())


def cut(data: bytes, *, name: str, model: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Returns the network's input of one encoded picture, and the cell's area.

    The same steps as for the cells that were packed for training.

    Args:
      data: a whole BMP, PNG, JPEG or TIFF file.
      name: what to call it in an error.
      model: that section of `model.json`.

    Returns:
      (image_size, image_size, 3) uint8 RGB, and pixels of the original picture.

    Raises:
      BadImage: if it cannot be decoded.
    """
    stored, area = transforms.prepare(
        data,
        name=name,
        max_side=model["max_side"],
        crop=model["crop"],
        size=model["pack_size"],
    )
    return transforms.resize(stored, model["image_size"]), area


def _root(path: Path) -> Path | zipfile.Path:
    """Returns the folder, on disk or in a zip, in which `model.json` lies."""
    if path.is_dir():
        for folder in (path, path / FOLDER):
            if (folder / RECORD_FILE).exists():
                return folder
        raise _nothing(path, f"there is no {RECORD_FILE}")
    if not path.exists():
        raise _nothing(path, "does not exist")
    if not zipfile.is_zipfile(path):
        raise _nothing(path, "is no folder and no zip")
    names = zipfile.ZipFile(path).namelist()
    found = [name for name in names if name.rpartition("/")[2] == RECORD_FILE]
    if len(found) != 1:
        raise _nothing(path, f"has {len(found)} files {RECORD_FILE}, not one")
    return zipfile.Path(path, found[0].removesuffix(RECORD_FILE))


def _nothing(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: holds no model ({why}); give a model directory, the folder of a "
        "finished run, or a zip of one"
    )


def _check_version(path: Path, record: Mapping[str, Any]) -> None:
    if record["format"] != FORMAT:
        raise InputError(
            f"{path}: is of format {record['format']}, written by "
            f"{record.get('package')}, and allcls_jax {__version__} reads format "
            f"{FORMAT}; use the version that wrote it, or train again"
        )


def _build(
    path: Path, files: Mapping[str, bytes], record: dict[str, Any], sha256: str
) -> ModelDirectory:
    """Returns the model; raises KeyError, TypeError or ValueError where it is none."""
    model = record["model"]
    dtype = compute_dtype(ComputeDtype(model["dtype"]))
    # The rate of dropout matters in training alone.
    blocks = model.get("blocks", 5)  # older models have all
    layers = vgg.conv_stack(ModelName(model["name"]), blocks) + vgg.head(
        HeadKind(model["head"]), 0.0, blocks=blocks
    )
    network = vgg.VGG(layers, dtype=dtype)
    arrays = safetensors.numpy.load(files[WEIGHTS_FILE])
    shapes = vgg.param_shapes(network, model["image_size"])
    params = pretrained.merge(shapes, arrays)
    preprocessing = preprocessing_from_json(json.dumps(record["preprocessing"]))
    check = CheckCells(**safetensors.numpy.load(files[CHECK_FILE]))
    _check_numbers(record, check)
    return ModelDirectory(
        path=path,
        classifier=Classifier(
            network,
            params,
            preprocessing,
            int(model["image_size"]),
            float(record["temperature"]),
            # Models of before there were views have one.
            test_time_views.check(int(model.get("views", 1))),
        ),
        thresholds={name: float(at) for name, at in record["thresholds"].items()},
        validation=np.array(record["validation"], float),
        domain=domain.from_json(record["domain"]),
        check=check,
        notes=tuple(map(str, record["notes"])),
        sha256=sha256,
        record=record,
    )


def _check_numbers(record: Mapping[str, Any], check: CheckCells) -> None:
    """Raises ValueError where probabilities could not be made of logits."""
    temperature = float(record["temperature"])
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}: must be above 0")
    for name, at in record["thresholds"].items():
        if not 0 <= at <= 1:
            raise ValueError(f"threshold {name} = {at}: must be from 0 to 1")
    validation = np.array(record["validation"], float)
    if validation.shape != (QUANTILES,) or not np.all(np.abs(validation - 0.5) <= 0.5):
        raise ValueError(f"validation: must be {QUANTILES} probabilities")
    apart = np.diff(check.logits.astype(float), axis=1)[:, 0] / temperature
    if not np.allclose(special.expit(apart), check.probability, atol=1e-4):
        raise ValueError("temperature: the check cells have other probabilities")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what a damaged model raises into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(
            f"{path}: may not be read by this user; change its permissions"
        ) from error
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        safetensors.SafetensorError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: the model is damaged ({type(error).__name__}: {reason}); copy it "
            "again, or make it again from its run"
        ) from error
