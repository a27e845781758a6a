"""A model that is ready to read pictures and to say what it sees in them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.data.domain import Domain
from allcls_jax.errors import InputError
from allcls_jax.experiments import model_directory
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.model_directory import LABELS, CheckCells
from allcls_jax.models.classifier import Classifier
from allcls_jax.serving.arguments import BATCH_SIZE, COVERAGE
from allcls_jax.training import sharding

THRESHOLD = "0.5"

# How far a device may be from the stored outputs, in logits, by type of convolution.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A picture as the network sees it.

    Attributes:
      image: (image_size, image_size, 3) uint8 RGB, the background 0.
      area: of the cell, pixels of the original picture.
      warnings: in what it differs from the training cells.
    """

    image: np.ndarray
    area: int
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """What is said of one picture.

    Attributes:
      image: its name.
      patient: if known.
      probability: calibrated P(ALL); None if the picture could not be read.
      decision: `ALL` if the probability is above the threshold, else `HEM`.
      uncertainty: entropy of the probability in bits, 0 to 1.
      abstain: whether it lies so near to the threshold that a person should decide.
      warnings: in what it differs from the training cells.
      error: why it could not be read; then the numbers are None.
    """

    image: str
    patient: str | None = None
    probability: float | None = None
    decision: str | None = None
    uncertainty: float | None = None
    abstain: bool | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as JSON and tables have them.

        Numbers have 7 significant digits, as many as the network computes with.
        """
        return {
            "image": self.image,
            "patient": self.patient,
            "probability": _rounded(self.probability),
            "decision": self.decision,
            "uncertainty": _rounded(self.uncertainty),
            "abstain": self.abstain,
            "warnings": list(self.warnings),
            "error": self.error,
        }


def failed(
    name: str, reason: InputError | str, patient: str | None = None
) -> Prediction:
    """Returns the row of a picture of which nothing can be said."""
    return Prediction(name, patient, error=str(reason).removeprefix(f"{name}: "))


class Model:
    """A trained classifier with its thresholds; safe to use from several threads.

    Attributes:
      classifier: its network.
      labels: of the two logits.
      thresholds: name → calibrated P(ALL) above which an image is called ALL.
      domain: of the training cells.
      check: cells with the outputs that the model must give.
      notes: that belong beside every result.
      sha256: of the whole model.
      record: the content of `model.json`.
      batch_size: images that go through the network at once.
    """

    labels = LABELS
    default_threshold = THRESHOLD

    def __init__(self, found: model_directory.ModelDirectory, batch_size: int):
        """Puts the network on all devices.

        Raises:
          InputError: if the batch cannot be divided among the devices.
        """
        sharding.check_batch_size("--batch_size", batch_size)
        self.path = found.path
        self.classifier: Classifier = found.classifier
        self.thresholds = dict(found.thresholds)
        self.domain: Domain = found.domain
        self.check: CheckCells = found.check
        self.notes = found.notes
        self.sha256 = found.sha256
        self.record = found.record
        self.batch_size = batch_size
        validation = _log_odds(found.validation)
        self._margin = functools.lru_cache(functools.partial(_margin, validation))
        self._shardings = sharding.data_parallel(jax.local_devices())
        self._params = self._shardings.put_replicated(found.classifier.params)
        self._logits = jax.jit(found.classifier.logits)

    def read(self, data: bytes, *, name: str) -> Cell:
        """Returns the network's input of one encoded picture, made as in training.

        Args:
          data: a whole BMP, PNG, JPEG or TIFF file.
          name: what to call it in an error.

        Raises:
          BadImage: if it cannot be decoded.
        """
        image, area = model_directory.cut(data, name=name, model=self.record["model"])
        return Cell(image, area, self.domain.warnings(image, area))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns (n, 2) float32, in the order HEM, ALL.

        Every batch has the same shape, so that the program is compiled once and a row
        does not depend on how many there are.

        Args:
          images: (n, image_size, image_size, 3) uint8 RGB.
        """
        size, found = self.batch_size, []
        for begin in range(0, len(images), size):
            part = images[begin : begin + size]
            whole = np.zeros((size, *images.shape[1:]), np.uint8)
            whole[: len(part)] = part
            placed = self._shardings.put_divided(whole)
            found.append((self._logits(placed, self._params), len(part)))
        rows = [np.asarray(logits)[:count] for logits, count in found]
        return np.concatenate([np.zeros((0, 2), np.float32), *rows])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the calibrated P(ALL), (n,) float64, of images as for `logits`."""
        logits = self.logits(images).astype(np.float64)
        apart = logits[:, ALL] - logits[:, HEM]
        return special.expit(apart / self.classifier.temperature)

    def threshold(self, text: str | None) -> float:
        """Returns a threshold on the calibrated P(ALL).

        Args:
          text: one of `thresholds`, or a number in (0, 1); None: the default.

        Raises:
          InputError: if it is neither.
        """
        text = THRESHOLD if text is None else text
        if text in self.thresholds:
            return self.thresholds[text]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < 1:
            names = ", ".join(self.thresholds)
            raise InputError(
                f"--threshold={text}: must be a number between 0 and 1, or one of the "
                f"model's: {names}"
            )
        return value

    def prediction(
        self,
        name: str,
        cell: Cell,
        probability: float,
        *,
        threshold: float,
        coverage: float = COVERAGE,
        patient: str | None = None,
    ) -> Prediction:
        """Returns what is said of a picture.

        Args:
          name: of the picture.
          cell: the picture.
          probability: from `probabilities`.
          threshold: above which it is called ALL.
          coverage: share of the validation images that a decision would be made of; of
            an image nearer to the threshold than all of these the model abstains.
          patient: if known.
        """
        if not math.isfinite(probability):
            return failed(name, "the network gives no number for it", patient)
        (row,) = self.decisions([probability], threshold=threshold, coverage=coverage)
        return Prediction(
            image=name,
            patient=patient,
            probability=probability,
            warnings=cell.warnings,
            **row,
        )

    def decisions(
        self, probabilities: Sequence[float], *, threshold: float, coverage: float
    ) -> list[dict[str, Any]]:
        """Returns `decision`, `uncertainty` and `abstain` of each probability.

        Args:
          probabilities: from `probabilities`.
          threshold: as for `prediction`.
          coverage: as for `prediction`.

        Raises:
          InputError: as for `margin`.
        """
        margin = self.margin(threshold, coverage)
        given = np.asarray(probabilities, np.float64)
        called = (given > threshold).tolist()
        entropy = (special.entr(given) + special.entr(1 - given)) / math.log(2)
        near = np.abs(_log_odds(given) - _log_odds(threshold)) < margin
        return [
            {"decision": LABELS[ALL if is_all else HEM], "uncertainty": u, "abstain": a}
            for is_all, u, a in zip(
                called, entropy.tolist(), near.tolist(), strict=True
            )
        ]

    def margin(self, threshold: float, coverage: float) -> float:
        """Returns the least distance in log odds at which a decision is made.

        Args:
          threshold: as for `prediction`.
          coverage: as for `prediction`.

        Raises:
          InputError: if the coverage is not in (0, 1].
        """
        if not 0 < coverage <= 1:
            raise InputError(
                f"--coverage={coverage:g}: must be above 0 and at most 1, the share of "
                "images to decide"
            )
        return self._margin(threshold, coverage)

    def self_check(self) -> float:
        """Computes the check cells on the devices that are here.

        Returns:
          The largest difference of a logit from what is stored.

        Raises:
          InputError: if it is larger than rounding can be.
        """
        found = self.logits(self.check.images)
        difference = float(np.max(np.abs(found - self.check.logits)))
        kind = jnp.dtype(self.classifier.model.dtype).name
        scale = max(1.0, float(np.max(np.abs(self.check.logits))))
        if not difference <= _TOLERANCE[kind] * scale:
            raise InputError(
                f"{self.path}: its check cells give other outputs here than where it "
                f"was written (logits differ by up to {difference:.3g}); the model is "
                "damaged, or JAX computes otherwise on this device: compare with "
                "JAX_PLATFORMS=cpu"
            )
        return difference


def open_model(path: Path | str, *, batch_size: int | None = None) -> Model:
    """Opens a model directory, a run's folder, or a zip of either.

    Of a run without a model directory, such as a fold of a cross-validation, it is made
    first from the checkpoint, which takes the run's cells and pretrained weights.

    Args:
      path: of it.
      batch_size: images that go through the network at once, over all devices of this
        process; None: 32, or so many more that each device gets as many.

    Raises:
      InputError: if there is no model, it is damaged, or another version's.
    """
    path = Path(path).expanduser()
    inside = path / model_directory.FOLDER
    if (path / folder.CONFIG_FILE).exists() and not inside.exists():
        # Training's packages take seconds, which a model directory need not wait for.
        from allcls_jax.experiments.leave_model import leave_from_checkpoint

        leave_from_checkpoint(path)
    if batch_size is None:
        batch_size = sharding.at_least(BATCH_SIZE)
    return Model(model_directory.read(path), batch_size)


def _margin(validation: np.ndarray, threshold: float, coverage: float) -> float:
    """Returns the margin, given the log odds of the validation images."""
    apart = np.abs(validation - _log_odds(threshold))
    return float(np.quantile(apart, 1 - coverage)) if coverage < 1 else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")


def _log_odds(probability: Any) -> Any:
    """Returns log odds, those of 0 and 1 being large but finite."""
    return special.logit(np.clip(probability, 1e-12, 1 - 1e-12))
