"""What cells a model was trained on, and whether a picture looks like one of them.

A network gives every picture a probability, a photograph of a cat too. These few
measures find what is grossly different: they are a warning, not a guarantee.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

# The quantile of the training cells that is still usual, and by how much more a cell
# may differ from them before it is told of.
_USUAL = 0.001
_SLACK = 0.2
# A cell on black touches the picture's edge with no more of the outermost pixels.
_EDGE_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Domain:
    """Ranges of the training cells.

    Attributes:
      area: lowest usual, median and highest usual area, pixels of the original picture.
      colour: mean grey level of the cell's pixels, R, G and B, averaged over cells.
      precision: inverse of their covariance, 3 x 3.
      distance: the highest usual Mahalanobis distance of a cell's mean colour.
    """

    area: tuple[float, float, float]
    colour: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    distance: float

    def warnings(self, image: np.ndarray, area: int) -> tuple[str, ...]:
        """Returns in what a picture differs from the training cells.

        Args:
          image: (height, width, 3) uint8 RGB, the background 0.
          area: of the cell, pixels of the original picture.

        Returns:
          A short sentence for each difference; nothing for a usual cell.
        """
        cell = np.asarray(image.any(axis=-1))
        edges = (cell[0], cell[-1], cell[:, 0], cell[:, -1])
        if not cell.any():
            return ("the picture is empty",)
        if np.mean(np.concatenate(edges)) > _EDGE_SHARE:
            return ("not a segmented cell: the background is not black",)
        found = []
        low, median, high = self.area
        if not low * (1 - _SLACK) <= area <= high * (1 + _SLACK):
            kind = "smaller" if area < median else "larger"
            found.append(
                f"{kind} than the training cells: {area:,} pixels, theirs "
                f"{low:,.0f} to {high:,.0f}"
            )
        if self._distance(mean_colour(image)) > self.distance * (1 + _SLACK):
            found.append("stained or lit otherwise than the training cells")
        return tuple(found)

    def _distance(self, colour: np.ndarray) -> float:
        return float(_distances(colour[None], self.colour, self.precision)[0])

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return dataclasses.asdict(self)


def from_json(tree: Any) -> Domain:
    """Returns what `Domain.to_json` gave.

    Raises:
      KeyError, TypeError, ValueError: if it is something else.
    """
    low, median, high = map(float, tree["area"])
    colour = np.asarray(tree["colour"], float)
    precision = np.asarray(tree["precision"], float)
    if colour.shape != (3,) or precision.shape != (3, 3):
        raise ValueError("colour must have 3 values, precision 3 x 3")
    return Domain(
        (low, median, high),
        tuple(colour.tolist()),
        tuple(map(tuple, precision.tolist())),
        float(tree["distance"]),
    )


def mean_colour(image: np.ndarray) -> np.ndarray:
    """Returns the mean grey levels (3,) of what is not black; 0 where all is."""
    cell = np.asarray(image.any(axis=-1))
    return image[cell].mean(axis=0) if cell.any() else np.zeros(3)


def learn(images: Iterable[np.ndarray], area: np.ndarray) -> Domain:
    """Returns the ranges of training cells.

    Args:
      images: (height, width, 3) uint8 RGB each, the background 0; at least one.
      area: (n,) of the cells, pixels of their original pictures.
    """
    colours = np.stack([mean_colour(image) for image in images])
    centre = colours.mean(axis=0)
    # One grey level of spread at least: few cells may all lie in a plane.
    covariance = np.cov(colours, rowvar=False, ddof=0) + np.eye(3)
    precision = np.linalg.inv(covariance)
    distances = _distances(colours, centre, precision)
    low, median, high = np.quantile(area, (_USUAL, 0.5, 1 - _USUAL))
    return Domain(
        (float(low), float(median), float(high)),
        tuple(centre.tolist()),
        tuple(map(tuple, precision.tolist())),
        float(np.quantile(distances, 1 - _USUAL)),
    )


def _distances(colours: np.ndarray, centre: Any, precision: Any) -> np.ndarray:
    """Returns the Mahalanobis distances (n,) of colours (n, 3)."""
    apart = colours - np.asarray(centre)
    return np.sqrt(np.einsum("ni,ij,nj->n", apart, np.asarray(precision), apart))
