"""The built-in cells: stained nuclei on black, drawn rather than downloaded.

Every cell is a function of `SyntheticConfig`, its patient and its number within the
patient, of nothing else: any cell can be drawn alone, in any order, in any process.
What tells the classes apart (size, chromatin, nucleoli) varies from image to image;
what tells patients apart (stain, texture) is drawn without a look at the class.
"""

import dataclasses
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.random import Generator
from scipy import ndimage, sparse, special

from allcls_jax import config_rules
from allcls_jax.config import Config, DataConfig, SyntheticConfig
from allcls_jax.data import synthetic_patients as patients
from allcls_jax.data import transforms
from allcls_jax.data.cells import ALL, HEM, CellFile, Part

SIZE = 450  # pixels, the side of an image, as in C-NMC 2019

# Raise it whenever a drawing changes: packed copies are then made anew.
DRAWING_VERSION = 1

# Cell area in pixels, log-normal: (median, sigma) by class. The classes overlap as they
# do in C-NMC 2019, where area alone has an AUROC of about 0.8.
_AREA = {ALL: (36_000.0, 0.20), HEM: (26_000.0, 0.28)}
_AREA_RANGE = (9_000.0, 51_000.0)

# Mean optical density (natural log, of red, green, blue) of nucleus and cytoplasm.
_NUCLEUS = np.array([1.36, 2.32, 1.22])
_CYTOPLASM = np.array([1.15, 1.55, 0.93])
# Directions of optical density: how much stain was taken up, its two shifts of hue
# (violet against pink, blue against red), and chromatin, a haematoxylin-eosin mixture.
_DENSITY = np.array([0.54, 0.75, 0.39])
_PINK = np.array([0.08, -0.51, 0.86])
_BLUE = np.array([0.84, -0.43, -0.33])
_CHROMATIN = np.array([0.59, 0.76, 0.26])
# Density lost at the outline, and the pixels over which the loss fades inwards.
_RIM, _RIM_REACH = np.array([0.27, 0.46, 0.10]), 3.4
_HALO, _HALO_REACH = np.array([-0.06, 0.15, 0.13]), 13.0

# Standard deviations in pixels of the four layers of chromatin, and their shares.
_GRAINS = np.array([2.5, 4.8, 9.0, 20.0])
_SHARES = np.array([0.42, 0.58, 0.60, 0.70])

_Disc = tuple[float, float, float]  # x, y and radius in pixels
_Window = tuple[slice, slice]  # rows and columns


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticImage:
    """A cell that is drawn when it is read."""

    config: SyntheticConfig
    index: int  # from 0 to config.num_images - 1

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"synthetic cell {self.index}"

    def read(self) -> bytes:
        """Returns the drawing as PNG."""
        return transforms.encode_png(draw(self.config, self.index))

    def stamp(self) -> str:
        """Returns everything that the drawing depends on."""
        return f"synthetic|{DRAWING_VERSION}|{self.config}|{self.index}"


def cells(config: SyntheticConfig) -> Sequence[CellFile]:
    """Returns `num_images` cells of `num_patients` patients, patient by patient.

    The first half of the patients is ALL (`1`, `2`, …), the second HEM (`H1`, `H2`, …);
    `all_share` of the images are ALL. Folds 0 to 2 keep patients whole and hold about
    the same number of patients and images of each class.

    Raises:
      InputError: if the configuration breaks a rule of `config_rules`.
    """
    config_rules.validate(Config(data=DataConfig(synthetic=config)))
    config = dataclasses.replace(config)  # later changes are not ours
    return _Cells(config, patients.folds(patients.image_counts(config)))


def draw(config: SyntheticConfig, index: int) -> np.ndarray:
    """Returns cell `index` of `cells(config)` as (450, 450, 3) uint8 RGB.

    The background is exactly 0; the cell is one connected region, centred.

    Raises:
      IndexError: if there is no such cell.
    """
    if not 0 <= index < config.num_images:
        raise IndexError(f"cell {index} of {config.num_images}")
    row, number = patients.place(config, index)
    patient, label = patients.patient(config, row)
    rng = patients.generator("image", config.seed, patient, number)
    look, shape = _look(config, patient, label, rng), _shape(rng, label)
    return _frame(_colour(rng, look, shape, label), shape.mask)


@dataclasses.dataclass(frozen=True, slots=True)
class _Cells(Sequence[CellFile]):
    """The cells of a configuration, each made when it is asked for."""

    config: SyntheticConfig
    folds: np.ndarray  # (num_patients,) int64

    def __len__(self) -> int:
        return self.config.num_images

    @overload
    def __getitem__(self, index: int) -> CellFile: ...

    @overload
    def __getitem__(self, index: slice) -> list[CellFile]: ...

    def __getitem__(self, index: int | slice) -> CellFile | list[CellFile]:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[i] for i in place]
        row, number = patients.place(self.config, place)
        patient, label = patients.patient(self.config, row)
        suffix = "all" if label == ALL else "hem"
        return CellFile(
            # Three cells from each view of the smear, as the names would tell.
            image_id=f"UID_{patient}_{1 + number // 3}_{1 + number % 3}_{suffix}",
            patient=patient,
            label=label,
            part=Part.TRAIN,
            fold=int(self.folds[row]),
            source=SyntheticImage(config=self.config, index=place),
        )


@dataclasses.dataclass(slots=True, kw_only=True)
class _Look:
    """Stain and texture of one cell, each about standard normal over all cells."""

    density: float  # stain taken up
    pink: float
    blue: float
    contrast: float  # of the chromatin
    grain: float  # size of its clumps
    spots: float  # how much paler spots stand out
    rim: float  # how far the outline pales
    balance: float  # coarse against fine chromatin


def _look(config: SyntheticConfig, patient: str, label: int, rng: Generator) -> _Look:
    """Returns the patient's own look mixed with the image's, by `patient_effect`."""
    names = [field.name for field in dataclasses.fields(_Look)]
    own = patients.generator("patient", config.seed, patient).standard_normal(
        len(names)
    )
    chance = rng.standard_normal(len(names))
    effect = config.patient_effect
    # At 0.5 half of the variance lies between patients, as in C-NMC 2019.
    mixed = np.clip(1.4 * effect * own + np.sqrt(1 - effect) * chance, -2.5, 2.5)
    look = _Look(**dict(zip(names, mixed.tolist(), strict=True)))
    # A lymphoblast's chromatin is finer and more open.
    sign = 1 if label == ALL else -1
    look.density -= 0.2 * sign
    look.grain -= 0.45 * sign
    look.balance -= 0.45 * sign
    return look


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Where one cell is on a square grid of its own; n pixels in all."""

    mask: np.ndarray  # (s, s) bool, n times True: one connected region
    depth: np.ndarray  # (n,) float64, pixels from the outline inwards
    nucleus: np.ndarray  # (n,) float64 in [0, 1]: the nucleus's share
    place: np.ndarray  # (2, n) float64, x and y in radii from the centre


def _shape(rng: Generator, label: int) -> _Shape:
    """Returns an irregular disc, its nucleus, and what segmentation makes of it."""
    median, sigma = _AREA[label]
    area = np.clip(median * np.exp(sigma * rng.standard_normal()), *_AREA_RANGE)
    angles = np.linspace(-np.pi, np.pi, 1441)
    radius = _outline(rng, angles)
    # Of a radius r(angle), the area is half the integral of its square.
    radius *= np.sqrt(area / (np.pi * np.mean(radius[:-1] ** 2)))
    # A slanting outline is nearer than it looks along the radius.
    lean = 1 / np.hypot(1, np.gradient(radius, angles) / radius)

    # A thin rim of cytoplasm all round, at times a crescent on one side.
    crescent = rng.uniform(0.08, 0.30) * (rng.random() < 0.18)
    inner = radius - rng.uniform(0.5, 2.5)
    inner *= 1 - crescent * _bump(rng, angles, rng.uniform(0.5, 1.1))

    tail = _tail(rng, angles, radius) if rng.random() < 0.35 else []
    reach = max([radius.max(), *(np.hypot(x, y) + r for x, y, r in tail)])
    size = min(SIZE, 2 * int(np.ceil(reach)) + 4)
    line = np.arange(size) - (size - 1) / 2
    distance = np.hypot(line, line[:, np.newaxis])
    turn = np.arctan2(line[:, np.newaxis], line)
    step = np.rint((turn + np.pi) * (len(angles) - 1) / (2 * np.pi)).astype(np.int64)

    depth = (radius[step] - distance) * lean[step]
    for disc in tail:
        window, inside = _inside(line, disc)
        depth[window] = np.maximum(depth[window], inside)
    mask = depth > 0
    _cut(rng, mask, line, angles, radius)
    regions = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=regions)  # a cut may leave pieces: keep the largest
    mask = regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])
    beyond = distance[mask] - inner[step[mask]]
    y, x = np.nonzero(mask)
    return _Shape(
        mask=mask,
        depth=depth[mask],
        nucleus=special.expit(-beyond / rng.uniform(1.5, 4.0)),
        place=np.stack([line[x], line[y]]) / np.sqrt(area / np.pi),
    )


def _outline(rng: Generator, angles: np.ndarray) -> np.ndarray:
    """Returns a closed curve as radius over angles, about 1."""
    order, steps = np.arange(2, 40), len(angles) - 1
    spread = 0.064 * (order / 2) ** -1.75 * np.exp(0.4 * rng.standard_normal())
    cosine, sine = rng.standard_normal((2, len(order))) * spread
    waves = np.zeros(steps // 2 + 1, np.complex128)
    waves[0], waves[order] = steps, (cosine + 1j * sine) * (steps / 2)
    radius = np.resize(np.fft.irfft(waves, steps), len(angles))  # the first comes last
    for _ in range(rng.poisson(0.5)):  # lobes and notches
        radius += rng.normal(0, 0.10) * _bump(rng, angles, rng.uniform(0.12, 0.5))
    return np.maximum(radius, 0.4)


def _bump(rng: Generator, angles: np.ndarray, width: float) -> np.ndarray:
    """Returns a smooth peak of height 1 and `width` radians, anywhere around."""
    away = (angles - rng.uniform(-np.pi, np.pi) + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-((away / width) ** 2))


def _tail(rng: Generator, angles: np.ndarray, radius: np.ndarray) -> list[_Disc]:
    """Returns overlapping discs: a shred of cytoplasm that sticks to the cell."""
    heading = rng.uniform(-np.pi, np.pi)
    start = np.interp(heading, angles, radius) - 6
    x, y = start * np.cos(heading), start * np.sin(heading)
    heading += rng.normal(0, 0.7)
    thick = rng.uniform(4, 10)
    discs: list[_Disc] = []
    for _ in range(rng.integers(3, 12)):
        discs.append((float(x), float(y), float(thick)))
        x += 0.7 * thick * np.cos(heading)
        y += 0.7 * thick * np.sin(heading)
        heading += rng.normal(0, 0.6)
        thick = np.clip(thick * np.exp(rng.normal(0, 0.3)), 3, 14)
    return discs


def _cut(
    rng: Generator,
    mask: np.ndarray,
    line: np.ndarray,
    angles: np.ndarray,
    radius: np.ndarray,
) -> None:
    """Clears the `mask` where segmentation has bitten or cut something off."""
    for _ in range(rng.poisson(0.3)):
        at = rng.uniform(-np.pi, np.pi)
        reach = np.interp(at, angles, radius) + rng.uniform(0, 4)
        bite = (reach * np.cos(at), reach * np.sin(at), rng.uniform(4, 12))
        window, inside = _inside(line, bite)
        mask[window] &= inside < 0
    if rng.random() < 0.12:  # a straight edge, where a neighbour was
        at = rng.uniform(-np.pi, np.pi)
        reach = np.interp(at, angles, radius) * rng.uniform(0.88, 0.97)
        mask &= line * np.cos(at) < reach - line[:, np.newaxis] * np.sin(at)


def _inside(line: np.ndarray, disc: _Disc) -> tuple[_Window, np.ndarray]:
    """Returns the part of the grid around a disc, and how deep it lies inside."""
    x, y, r = disc
    left, right = np.searchsorted(line, (x - r, x + r))
    top, bottom = np.searchsorted(line, (y - r, y + r))
    inside = r - np.hypot(line[left:right] - x, line[top:bottom, np.newaxis] - y)
    return (slice(top, bottom), slice(left, right)), inside


def _colour(rng: Generator, look: _Look, shape: _Shape, label: int) -> np.ndarray:
    """Returns the cell's intensities (n, 3), float64."""
    stain = 0.24 * look.density * _DENSITY + 0.038 * look.pink * _PINK
    stain += 0.030 * look.blue * _BLUE
    cytoplasm = _CYTOPLASM + 0.6 * stain + rng.normal(0, 0.09) * _DENSITY
    cytoplasm += rng.normal(0, 0.09) * _BLUE
    chromatin = _chromatin(rng, look, shape.mask) - _nucleoli(rng, shape, label)
    # Thickness and light vary slowly over the cell.
    slow = 0.08 * _noise(rng, shape.mask, 38.0) + rng.normal(0, 0.06, 2) @ shape.place
    warmth = 0.035 * _noise(rng, shape.mask, 16.0)
    # Shreds of cytoplasm are thin all over, with no paler rim of their own.
    pale = np.exp(0.22 * look.rim) * (0.3 + 0.7 * shape.nucleus)
    near = pale * np.exp(-shape.depth / _RIM_REACH)
    far = pale * np.exp(-shape.depth / _HALO_REACH)
    # Colour fringes: the optics image red and blue a little apart, in pixels.
    fringe = np.exp(rng.normal(0, 0.6, 2) @ shape.place / _RIM_REACH)
    grey, tint = 0.65 * rng.standard_normal((2, len(near)))

    image = np.empty((len(near), 3))
    for channel, (edge, noise) in enumerate(
        ((near / fringe, grey + tint), (near, grey), (near * fringe, grey - tint))
    ):
        density = chromatin * _CHROMATIN[channel] + warmth * _BLUE[channel]
        density += _NUCLEUS[channel] + stain[channel] - cytoplasm[channel]
        density *= shape.nucleus
        density += cytoplasm[channel] + slow * _DENSITY[channel]
        density -= edge * _RIM[channel] + far * _HALO[channel]
        image[:, channel] = 255 * np.exp(-np.maximum(density, 0)) + noise
    return image


def _chromatin(rng: Generator, look: _Look, mask: np.ndarray) -> np.ndarray:
    """Returns the optical density (n,) of chromatin about its mean."""
    weight = _SHARES * np.exp(0.22 * look.balance * np.array([-1.0, -0.4, 0.4, 1.0]))
    weight /= np.sqrt(np.sum(weight**2))
    field = np.zeros(np.count_nonzero(mask))
    for share, sigma in zip(weight, _GRAINS * np.exp(0.14 * look.grain), strict=True):
        field += share * _noise(rng, mask, sigma)
    # Pale gaps between the clumps are rarer and stronger than the clumps are dense.
    field += (0.6 + 0.3 * look.spots) * np.clip(field - 0.9, 0, 1.2)
    return -0.15 * np.exp(0.22 * look.contrast) * (field - field.mean())


def _nucleoli(rng: Generator, shape: _Shape, label: int) -> np.ndarray:
    """Returns the density (n,) that a few pale round spots take away."""
    paler = np.zeros(len(shape.depth))
    scale = np.sqrt(len(shape.depth) / np.pi)
    for _ in range(rng.poisson(1.8 if label == ALL else 0.5)):
        at, turn = np.sqrt(rng.uniform(0, 0.4)), rng.uniform(-np.pi, np.pi)
        reach, depth = rng.uniform(6, 13) / scale, rng.uniform(0.10, 0.30)
        away = (shape.place[0] - at * np.cos(turn)) ** 2
        away += (shape.place[1] - at * np.sin(turn)) ** 2
        paler += depth * np.exp(-away / reach**2)
    return paler


def _noise(rng: Generator, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Returns smooth noise (n,) in the mask: mean 0, variance 1, grain `sigma` pixels.

    Random heights on a coarse grid, spread by Gaussians of `sigma` pixels. Sparse
    products, for dense ones would start threads that a few milliseconds cannot pay.
    """
    at = np.arange(len(mask))[:, np.newaxis] / (1.3 * sigma)
    nodes = np.floor(at).astype(np.int64) + np.arange(6)  # 2 before, 3 after
    weights = np.exp(-0.5 * (1.3 * (at + 2 - nodes)) ** 2)
    weights /= np.sqrt(np.sum(weights**2, axis=1, keepdims=True))
    rows = np.arange(0, weights.size + 1, nodes.shape[1])
    spread = sparse.csr_array((weights.ravel(), nodes.ravel(), rows))
    return (spread @ (spread @ rng.standard_normal((nodes.max() + 1,) * 2)).T)[mask]


def _frame(colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the cell on black, its bounding box in the middle of the frame."""
    image = np.zeros((*mask.shape, 3), np.uint8)
    image[mask] = np.clip(np.rint(colour), 1, 255)  # never as black as the background
    cell = image[np.ix_(mask.any(axis=1), mask.any(axis=0))]
    height, width = cell.shape[:2]
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    frame[top : top + height, left : left + width] = cell
    return frame
