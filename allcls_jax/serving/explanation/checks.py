"""What can be said against a map: where it lies, and whether it knows the weights.

A figure that cannot be computed, as of a map that is the same everywhere, is None.

The sanity check is that of Adebayo et al., "Sanity Checks for Saliency Maps" (2018): a
map that stays as it is when the network's weights are replaced by random ones, from the
head downwards, shows the picture and not what the network has learned.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from allcls_jax.models import vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.serving.explanation.attribution import Advance, Maps, attribute
from allcls_jax.serving.explanation.settings import NUM_BLOCKS, Settings

# Mean rank correlation at and above which maps are said to hardly change.
LIMIT = 0.5

HARDLY = "maps hardly change: do not trust them"

# Weights are drawn from a seed alone: a run's own random ones must not come up again.
_FIRST_SEED = 2**31 + 5

# Share of a stage's pairs below which a mean over them would be chance.
_LEAST_DEFINED = 0.25

# Of its largest value: what a map may vary by for rounding alone.
_ROUNDING = 1e-6


def cell_mask(images: np.ndarray) -> np.ndarray:
    """Returns which pixels are the cell's (n, s, s) bool, of images (n, s, s, 3)."""
    return np.asarray(images.any(-1))


def shares_on_cell(maps: np.ndarray, images: np.ndarray) -> list[float | None]:
    """Returns the share of each map's absolute values that lies on the cell.

    Args:
      maps: (n, s, s) float32.
      images: (n, s, s, 3) uint8, the background 0.

    Returns:
      n shares in [0, 1]; None where the map is 0 everywhere.
    """
    size = np.abs(maps).astype(np.float64)
    total = size.sum((1, 2))
    on_cell = np.where(cell_mask(images), size, 0).sum((1, 2))
    return [
        float(part / whole) if whole > 0 else None
        for part, whole in zip(on_cell, total, strict=True)
    ]


def is_constant(values: np.ndarray) -> bool:
    """Whether values differ by no more than rounding; also where there are none."""
    if not values.size:
        return True
    return float(np.ptp(values)) <= _ROUNDING * float(np.abs(values).max())


@dataclasses.dataclass(frozen=True, slots=True)
class Similarity:
    """How alike two maps are on a cell's pixels; each in [-1, 1], or None.

    Attributes:
      spearman: rank correlation of the absolute values: a map that only changed its
        sign counts as the same.
      spearman_signed: rank correlation of the values.
      correlation: Pearson's, of the absolute values.
    """

    spearman: float | None
    spearman_signed: float | None
    correlation: float | None


def similarity(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> Similarity:
    """Compares two maps on the cell: beside it many are 0 whatever the network.

    Args:
      first: (s, s), and
      second: (s, s).
      mask: (s, s) bool, the cell.
    """
    signed = first[mask].astype(np.float64), second[mask].astype(np.float64)
    absolute = np.abs(signed[0]), np.abs(signed[1])
    return Similarity(
        _unless_constant(stats.spearmanr, *absolute),
        _unless_constant(stats.spearmanr, *signed),
        _unless_constant(stats.pearsonr, *absolute),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What random weights so far down do to the maps.

    Attributes:
      randomised: names of the parts, from the top.
      spearman: and
      spearman_signed: and
      correlation: means over pairs of maps for which they are defined; None: for none.
      pairs: of a trained and a random network's map.
      undefined: of them, those without rank correlation: a map is constant.
    """

    randomised: tuple[str, ...]
    spearman: float | None
    spearman_signed: float | None
    correlation: float | None
    pairs: int
    undefined: int

    @property
    def counts(self) -> bool:
        """Whether enough pairs have a rank correlation for their mean to say much."""
        return self.pairs - self.undefined >= max(1.0, _LEAST_DEFINED * self.pairs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SanityCheck:
    """The stages, and what follows from them.

    Attributes:
      images: how many were looked at; 0: the check was left out, or no map is defined.
      draws: of random weights; 0: the check was left out.
      stages: from the head alone to all weights.
    """

    images: int
    draws: int
    stages: tuple[Stage, ...] = ()

    @property
    def worst(self) -> Stage | None:
        """The stage after which maps are most alike; None where that is undefined."""
        known = [s for s in self.stages if s.spearman is not None and s.counts]
        return max(known, key=lambda stage: stage.spearman or 0.0, default=None)

    @property
    def hardly_change(self) -> bool | None:
        """Whether the maps are not to be trusted; None where that is undefined."""
        if self.worst is None or self.worst.spearman is None:
            return None
        return self.worst.spearman >= LIMIT

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.draws:
            return "not done: nothing is known of whether the maps can be trusted"
        if self.worst is None:
            return "undefined: the maps are the same everywhere on the cells"
        what = (
            f"mean rank correlation {self.worst.spearman:.2f} of the first "
            f"{'map' if self.images == 1 else f'{self.images} maps'} with those of "
            f"random weights in {_joined(self.worst.randomised)}"
        )
        if self.hardly_change:
            return f"{HARDLY} ({what}; from {LIMIT:g} on is too much)"
        return f"maps change with the weights ({what} at most, below {LIMIT:g})"

    def to_dict(self) -> dict[str, Any]:
        """Returns what goes into JSON."""
        return {
            "images": self.images,
            "draws": self.draws,
            "limit": LIMIT,
            "hardly_change": self.hardly_change,
            "verdict": self.verdict,
            "stages": [
                dataclasses.asdict(stage) | {"randomised": list(stage.randomised)}
                for stage in self.stages
            ],
        }


def cascade(classifier: Classifier, *, seed: int) -> Iterator[tuple[str, Classifier]]:
    """Yields `head`, `block5`, … `block1`, each with the classifier randomised so far.

    Weights are drawn as before a training; the architecture stays.
    """
    layers = classifier.model.layers
    shapes = vgg.param_shapes(classifier.model, classifier.image_size)
    random = vgg.init_params(shapes, seed=seed)
    parts = {"head": [layer.name for layer in layers if isinstance(layer, vgg.Dense)]}
    for block in range(NUM_BLOCKS, 0, -1):
        name = f"block{block}"
        parts[name] = [
            layer.name
            for layer in layers
            if isinstance(layer, vgg.Conv) and layer.name.startswith(f"{name}_")
        ]
    params = dict(classifier.params)
    for part, names in parts.items():
        if names:
            params = params | {name: random[name] for name in names}
            yield part, dataclasses.replace(classifier, params=params)


def num_stages(classifier: Classifier) -> int:
    """Returns how many stages `cascade` has."""
    blocks = {
        layer.name.split("_")[0]
        for layer in classifier.model.layers
        if isinstance(layer, vgg.Conv)
    }
    return 1 + len(blocks)


def sanity_check(
    classifier: Classifier,
    images: np.ndarray,
    sign: np.ndarray,
    trained: np.ndarray,
    settings: Settings,
    *,
    draws: int,
    batch_size: int = 4,
    advance: Advance = lambda _: None,
) -> SanityCheck:
    """Compares maps of the network with those of ever more randomised ones.

    Args:
      classifier: the trained one.
      images: (n, s, s, 3) uint8, n at least 1.
      sign: (n,): 1 explains ALL, -1 explains HEM, also of the random networks.
      trained: (n, s, s), maps of the trained network.
      settings: the method.
      draws: how many times random weights are drawn, at least 1.
      batch_size: as for `attribute`.
      advance: is called with the number of maps just made, of
        n * draws * num_stages(classifier) in all.
    """
    masks = cell_mask(images)
    found: dict[str, list[Similarity]] = {}
    for draw in range(draws):
        for part, network in cascade(classifier, seed=_FIRST_SEED + draw):
            maps = attribute(
                network, images, sign, settings, batch_size=batch_size, advance=advance
            )
            pairs = zip(trained, maps.values, masks, strict=True)
            found.setdefault(part, []).extend(similarity(*pair) for pair in pairs)
    parts = tuple(found)
    stages = [
        Stage(
            randomised=parts[: place + 1],
            spearman=mean_of_known([pair.spearman for pair in pairs]),
            spearman_signed=mean_of_known([pair.spearman_signed for pair in pairs]),
            correlation=mean_of_known([pair.correlation for pair in pairs]),
            pairs=len(pairs),
            undefined=sum(pair.spearman is None for pair in pairs),
        )
        for place, pairs in enumerate(found.values())
    ]
    return SanityCheck(images=len(images), draws=draws, stages=tuple(stages))


def completeness(maps: Maps, i: int, sign: float) -> dict[str, float] | None:
    """Returns how far the sum of a map is from what integrated gradients promise.

    Args:
      maps: of several images.
      i: which of them.
      sign: 1 if ALL is explained, -1 if HEM.

    Returns:
      `sum`, `difference_to_black` (of the score) and `error`, all in log odds; None for
      methods that promise nothing.
    """
    if maps.black is None:
        return None
    difference = float(sign * (maps.log_odds[i] - maps.black))
    total = float(maps.values[i].sum(dtype=np.float64))
    return {
        "sum": total,
        "difference_to_black": difference,
        "error": abs(total - difference),
    }


def overall_error(found: Sequence[dict[str, float]]) -> float | None:
    """Returns all errors beside all differences; None where there is nothing."""
    whole = sum(abs(one["difference_to_black"]) for one in found)
    return sum(one["error"] for one in found) / whole if whole else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Returns the mean of those that are not None, or None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _unless_constant(
    measure: Any, first: np.ndarray, second: np.ndarray
) -> float | None:
    if is_constant(first) or is_constant(second):
        return None
    return float(measure(first, second).statistic)


def _joined(parts: Sequence[str]) -> str:
    if len(parts) > 2:
        return f"{parts[0]} to {parts[-1]}"
    return " and ".join(parts)
