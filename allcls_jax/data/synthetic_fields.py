"""Drawn microscope fields: the built-in cells on a smear, with where each nucleus lies.

A field is a function of its settings and seed, of nothing else. Its nuclei are cells of
`synthetic`, so that the class of each is known as well; around them lie red cells,
platelets, precipitated stain and smudges. Light, stain, focus and noise vary from field
to field. It looks like a smear and is none: lobed nuclei, for one, do not occur.
"""

import dataclasses

import numpy as np
from numpy.random import Generator
from scipy import ndimage, special

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic
from allcls_jax.data import synthetic_patients as patients
from allcls_jax.data.synthetic_nuclei import (
    PlacedNucleus,
    Window,
    around_window,
    distance_to,
    meeting,
    place_nuclei,
)

# Mean optical density (natural log, of red, green, blue) of what takes up stain. A red
# cell lets red light through: that tells it from every nucleus.
_RED_CELL = np.array([0.07, 0.42, 0.30])
_CYTOPLASM = np.array([0.34, 0.40, 0.14])
_PLATELET = np.array([0.38, 0.58, 0.26])
_PRECIPITATE = np.array([1.10, 1.50, 0.75])
_SMUDGE = np.array([0.16, 0.30, 0.12])

# Lengths in pixels of a drawn cell, whose nuclei are some 200 wide.
_RED_RADIUS = 88.0
_PLATELET_RADII = (13.0, 27.0)
_PRECIPITATE_RADII = (3.0, 9.0)
_SMUDGE_RADII = (60.0, 110.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FieldSettings:
    """What a field shows; the rest is drawn by lot.

    Attributes:
      width: pixels.
      height: pixels.
      scale: field pixels per pixel of a drawn cell.
      nuclei: how many at most; fewer where there is no room.
      touching: share of the nuclei that are laid against another one, in [0, 1].
      crowding: area of the red cells over that of the field.
      platelets: how many groups of them.
      debris: how many specks of precipitated stain; a quarter as many smudges.
      cells: which drawn cells the nuclei are.
    """

    width: int = 1000
    height: int = 750
    scale: float = 0.36
    nuclei: int = 14
    touching: float = 0.3
    crowding: float = 0.45
    platelets: int = 8
    debris: int = 8
    cells: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A drawn field.

    Attributes:
      picture: (height, width, 3) uint8 RGB.
      nuclei: (height, width) int32, k + 1 on nucleus k and 0 elsewhere. Of two that
        overlap the upper one has the shared pixels.
      cells: (n,) int64, which of the settings' cells each nucleus is.
      labels: (n,) int64, ALL or HEM.
    """

    picture: np.ndarray
    nuclei: np.ndarray
    cells: np.ndarray
    labels: np.ndarray


def draw(settings: FieldSettings, seed: int) -> Field:
    """Returns field number `seed` of these settings."""
    rng = patients.generator("field", seed)
    shape = (settings.height, settings.width)
    stain = rng.uniform(0.45, 0.95) * np.exp(rng.normal(0, 0.06, 3))
    wholes = place_nuclei(
        rng,
        settings.cells,
        shape,
        scale=settings.scale,
        count=settings.nuclei,
        touching=settings.touching,
    )
    density = np.zeros((*shape, 3), np.float32)
    taken = np.zeros(shape, bool)
    nuclei = np.zeros(shape, np.int32)
    for number, nucleus in enumerate(wholes):
        _add_cytoplasm(rng, density, taken, nucleus, settings.scale)
        nuclei[nucleus.window][nucleus.inside] = number + 1
    redness = np.exp(rng.normal(0, 0.10, 3)) * rng.uniform(0.75, 1.2)
    _add_red_cells(rng, density, taken, settings, _RED_CELL * redness)
    _add_smudges(rng, density, settings)
    for nucleus in wholes:
        _add_nucleus(density, nucleus, stain)
    _add_platelets(rng, density, taken, settings)
    _add_precipitate(rng, density, settings)
    cells = np.array([nucleus.cell for nucleus in wholes], np.int64)
    found = synthetic.cells(settings.cells)
    labels = np.array([found[int(cell)].label for cell in cells], np.int64)
    return Field(_photograph(rng, density), nuclei, cells, labels)


def _blob(
    centre: np.ndarray, reach: float, shape: tuple[int, ...]
) -> tuple[Window, np.ndarray, np.ndarray]:
    """Returns a window about a point, and its pixels' distances to it, by axis."""
    first = np.floor(centre - reach).astype(int)
    size = (int(2 * reach) + 3,) * 2
    window, _ = meeting((int(first[0]), int(first[1])), size, shape)
    y, x = (
        np.arange(part.start, part.stop) - middle
        for part, middle in zip(window, centre, strict=True)
    )
    return window, y[:, np.newaxis], x


def _wavy(rng: Generator, angle: np.ndarray, waves: int, depth: float) -> np.ndarray:
    """Returns a closed outline: factors of the radius over angles, about 1."""
    factor = np.ones_like(angle)
    for order in range(2, 2 + waves):
        lean, turn = rng.normal(0, depth / order), rng.uniform(0, 2 * np.pi)
        factor += lean * np.cos(order * angle + turn)
    return np.maximum(factor, 0.3)


def _add_nucleus(
    density: np.ndarray, nucleus: PlacedNucleus, stain: np.ndarray
) -> None:
    """Lays a nucleus over what is there."""
    share = nucleus.share[..., np.newaxis]
    there = density[nucleus.window]
    # Where two overlap, light passes both, but the cells are flat there.
    own = np.maximum(nucleus.density * stain, 0.85 * there)
    density[nucleus.window] = there * (1 - share) + own * share


def _add_cytoplasm(
    rng: Generator,
    density: np.ndarray,
    taken: np.ndarray,
    nucleus: PlacedNucleus,
    scale: float,
) -> None:
    """Lays pale blue cytoplasm around a nucleus, more on one side."""
    if not nucleus.inside.any():
        return
    width = rng.uniform(6, 34) * scale
    shift = rng.uniform(0, 0.8) * width
    turn = rng.uniform(-np.pi, np.pi)
    reach = int(np.ceil(2 * width + 4))
    around = around_window(nucleus.window, reach, taken.shape)
    far = distance_to(nucleus.within(around, taken.shape))
    rows, columns = np.nonzero(nucleus.inside)
    y = np.arange(around[0].start, around[0].stop) - nucleus.window[0].start
    x = np.arange(around[1].start, around[1].stop) - nucleus.window[1].start
    angle = np.arctan2(y[:, np.newaxis] - rows.mean(), x - columns.mean())
    edge = (width + shift * np.cos(angle - turn)) * _wavy(rng, angle, 4, 0.25)
    share = special.expit((edge - far) / max(0.5, 2.0 * scale))[..., np.newaxis]
    colour = _CYTOPLASM * np.exp(rng.normal(0, 0.18))
    density[around] = np.maximum(density[around], share * colour)
    taken[around] |= share[..., 0] > 0.3


def _add_red_cells(
    rng: Generator,
    density: np.ndarray,
    taken: np.ndarray,
    settings: FieldSettings,
    colour: np.ndarray,
) -> None:
    """Lays red cells where no white cell lies; they may overlap one another."""
    shape = density.shape[:2]
    radius = _RED_RADIUS * settings.scale
    wanted = settings.crowding * shape[0] * shape[1]
    free = distance_to(taken)
    count = int(np.ceil(wanted / (np.pi * radius**2)))
    centres = np.zeros((0, 2))
    for _ in range(count):
        # Of several places the one that is farthest from the others, if it is free.
        tries = rng.uniform((0, 0), shape, (6, 2))
        places = tries[free[tuple(tries.astype(int).T)] > 0.86 * radius]
        size = radius * np.clip(np.exp(rng.normal(0, 0.06)), 0.8, 1.2)
        if not len(places):
            continue
        gaps = np.linalg.norm(places[:, None] - centres, axis=-1).min(1, initial=1e9)
        if gaps.max() < 0.8 * radius:
            continue
        centre = places[np.argmax(gaps)]
        centres = np.vstack([centres, centre])
        _add_red_cell(rng, density, centre, size, colour, settings.scale)


def _add_red_cell(
    rng: Generator,
    density: np.ndarray,
    centre: np.ndarray,
    size: float,
    colour: np.ndarray,
    scale: float,
) -> None:
    window, y, x = _blob(centre, 1.4 * size, density.shape[:2])
    turn, flat = rng.uniform(-np.pi, np.pi), rng.uniform(0.86, 1.0)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = (y * np.cos(turn) - x * np.sin(turn)) / flat
    far = np.hypot(along, across) / _wavy(rng, np.arctan2(across, along), 3, 0.05)
    pallor = rng.uniform(0.25, 0.8)
    profile = 1 - pallor * np.exp(-((far / (0.42 * size)) ** 2))
    profile *= special.expit((size - far) / max(0.5, 3.0 * scale))
    strength = np.exp(rng.normal(0, 0.12))
    density[window] += strength * profile[..., np.newaxis] * colour


def _add_smudges(rng: Generator, density: np.ndarray, settings: FieldSettings) -> None:
    """Lays pale, fuzzy remains of burst cells."""
    shape = density.shape[:2]
    for _ in range(settings.debris // 4):
        size = rng.uniform(*_SMUDGE_RADII) * settings.scale
        window, y, x = _blob(rng.uniform((0, 0), shape), 2 * size, shape)
        far = np.hypot(x, y) / _wavy(rng, np.arctan2(y, x), 6, 0.3)
        share = special.expit((size - far) / (0.18 * size))
        grain = ndimage.gaussian_filter(rng.normal(0, 1, far.shape), 6 * settings.scale)
        share *= 1 + 0.3 * grain / max(float(grain.std()), 1e-6)
        colour = _SMUDGE * rng.uniform(0.7, 1.2)
        density[window] += (np.maximum(share, 0)[..., np.newaxis] * colour).astype(
            np.float32
        )


def _add_platelets(
    rng: Generator, density: np.ndarray, taken: np.ndarray, settings: FieldSettings
) -> None:
    """Lays small granular purple discs, alone or a few together, beside white cells."""
    shape = density.shape[:2]
    for _ in range(settings.platelets):
        middle = rng.uniform((0, 0), shape)
        for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
            size = rng.uniform(*_PLATELET_RADII) * settings.scale
            centre = middle + rng.normal(0, 30 * settings.scale, 2)
            window, y, x = _blob(centre, 1.6 * size, shape)
            far = np.hypot(x, y) / _wavy(rng, np.arctan2(y, x), 4, 0.25)
            share = special.expit((size - far) / (0.22 * size))
            share *= np.exp(0.25 * rng.standard_normal(far.shape))
            share[taken[window]] = 0
            density[window] += share[..., np.newaxis] * _PLATELET


def _add_precipitate(
    rng: Generator, density: np.ndarray, settings: FieldSettings
) -> None:
    """Lays dark specks of stain anywhere."""
    shape = density.shape[:2]
    for _ in range(settings.debris):
        middle = rng.uniform((0, 0), shape)
        for _ in range(int(rng.integers(1, 7))):
            size = rng.uniform(*_PRECIPITATE_RADII) * settings.scale
            centre = middle + rng.normal(0, 16 * settings.scale, 2)
            window, y, x = _blob(centre, 3 * size + 2, shape)
            share = special.expit((size - np.hypot(x, y)) / (0.3 * size))
            density[window] += share[..., np.newaxis] * _PRECIPITATE


def _photograph(rng: Generator, density: np.ndarray) -> np.ndarray:
    """Returns the picture (h, w, 3) uint8 of a field's optical density."""
    height, width = density.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, np.newaxis]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    lean = rng.normal(0, 0.05, 2)
    # Darker towards the corners, brightest somewhere about the middle.
    top, left = rng.normal(0, 0.25, 2)
    vignette = rng.uniform(0.0, 0.16)
    light = (
        lean[0] * y + lean[1] * x - vignette * ((y - top) ** 2 + (x - left) ** 2) / 2
    )
    lamp = rng.uniform(212, 244) * np.array([1.0, 0.985, 0.97]) ** rng.uniform(
        -0.5, 1.5
    )
    blur, noise = rng.uniform(0.5, 1.1), rng.uniform(1.2, 3.0)
    picture = np.empty(density.shape, np.uint8)
    for channel in range(3):
        level = np.exp(light - density[..., channel]) * min(lamp[channel], 250)
        level = ndimage.gaussian_filter(level, blur)
        level += noise * rng.standard_normal(level.shape, np.float32)
        picture[..., channel] = np.clip(np.rint(level), 0, 255)
    return picture
