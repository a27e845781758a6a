"""Drawn cells and copies of them of which it is known whose they are."""

import dataclasses
import functools
import itertools

import numpy as np
from PIL import Image

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic
from tests.data import pictures

# Everything that leaves quarter turns and mirror images different from each other.
VIEWS = [(turns, mirror) for mirror in (False, True) for turns in range(4)]

_CELLS = SyntheticConfig(num_images=240, num_patients=24)


@functools.cache
def cell(index: int) -> np.ndarray:
    """Drawn cell `index` of 240: (450, 450, 3) uint8, read-only."""
    image = synthetic.draw(_CELLS, index)
    image.flags.writeable = False
    return image


def turn(image: np.ndarray, view: tuple[int, bool]) -> np.ndarray:
    turns, mirror = view
    picture = Image.fromarray(image)
    if mirror:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(picture.rotate(90 * turns))


def shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves the cell anywhere in its frame, cutting nothing."""
    left, top, right, bottom = Image.fromarray(image).getbbox() or (0, 0, 1, 1)
    moved = Image.new("RGB", image.shape[1::-1])
    x = int(rng.integers(image.shape[1] - (right - left) + 1))
    y = int(rng.integers(image.shape[0] - (bottom - top) + 1))
    moved.paste(Image.fromarray(image[top:bottom, left:right]), (x, y))
    return np.array(moved)


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    return pictures.encode(image, "JPEG", quality=quality)


@dataclasses.dataclass(frozen=True)
class Copies:
    """Files, and whose cell each shows."""

    files: list[bytes]
    owner: list[int]
    kind: list[str]

    def pairs(self) -> set[tuple[int, int]]:
        """The pairs of files of one cell."""
        numbers = range(len(self.files))
        return {
            (i, j)
            for i, j in itertools.combinations(numbers, 2)
            if self.owner[i] == self.owner[j]
        }


def copies(number: int) -> Copies:
    """Drawn cells, each with a copy of every kind and one of all kinds at once."""
    rng = np.random.default_rng(0)
    made = Copies([], [], [])
    for index in range(number):
        image, view = cell(index), VIEWS[1 + index % 7]
        everything = shift(turn(image, view), rng)
        for kind, file in {
            "original": pictures.encode(image, "BMP"),
            "same bytes": pictures.encode(image, "BMP"),
            "turned": pictures.encode(turn(image, view), "BMP"),
            "shifted": pictures.encode(shift(image, rng), "BMP"),
            "encoded": jpeg(image),
            "everything": jpeg(everything, 88 + index % 5),
        }.items():
            made.files.append(file)
            made.owner.append(index)
            made.kind.append(kind)
    return made
