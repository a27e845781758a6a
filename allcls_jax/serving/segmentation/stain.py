"""Which pixels of a microscope field are stained as nuclei are.

The light where nothing lies is fitted and divided out, so that what counts is optical
density; k-means groups the colours of what is stained. One of the modules that import
scikit-learn.
"""

import dataclasses
import warnings

import numpy as np
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StainSettings:
    """How nuclear stain is told from the rest.

    Attributes:
      clusters: groups of colour that k-means makes of what is stained.
      sample: pixels that it looks at, at most.
      seed: of the sample and of k-means.
      stained: optical density, the mean of the three colours, above which a pixel is
        no background.
      least: strength of nuclear stain (see `strength`), optical density: less is none.
      share: of the main group's strength that further groups of nuclear stain have at
        least; paler ones are cytoplasm, platelets, smudges.
    """

    clusters: int = 5
    sample: int = 24_000
    seed: int = 0
    stained: float = 0.12
    least: float = 0.22
    share: float = 0.6


@dataclasses.dataclass(frozen=True, slots=True)
class Light:
    """The logarithm of the light where nothing lies, over the field.

    Attributes:
      weights: (terms, 3) float64 of a polynomial over [-1, 1] by [-1, 1].
    """

    weights: np.ndarray

    def over(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns it for every pixel: (h, w, 3) float32."""
        y, x = (
            np.linspace(-1, 1, length, dtype=np.float32)
            if length > 1
            else np.zeros(1, np.float32)
            for length in shape[:2]
        )
        light = np.empty((*shape[:2], 3), np.float32)
        powers = np.arange(1 + max(map(max, _TERMS)))
        for channel in range(3):
            factors = np.zeros((len(powers), len(powers)), np.float32)
            for (down, across), weight in zip(_TERMS, self.weights, strict=True):
                factors[down, across] = weight[channel]
            rows, columns = y[:, None] ** powers, x[:, None] ** powers
            np.matmul(rows @ factors, columns.T, out=light[..., channel])
        return light


def reduced(image: np.ndarray, step: int) -> np.ndarray:
    """Returns the means of squares of `step` pixels: (h, w, 3) float32."""
    if step == 1:
        return image.astype(np.float32)
    height, width = (-(-length // step) for length in image.shape[:2])
    # Incomplete squares at the lower and right edge repeat the last line.
    rows = np.minimum(np.arange(height * step), image.shape[0] - 1)
    columns = np.minimum(np.arange(width * step), image.shape[1] - 1)
    total = np.zeros((height, width, 3), np.float32)
    for row in range(step):
        lines = image[rows[row::step]]
        for column in range(step):
            total += lines[:, columns[column::step]]
    return total / step**2


def illumination(image: np.ndarray) -> Light | None:
    """Fits the light where nothing lies, or returns None where there is none such."""
    height, width = image.shape[:2]
    skip = max(1, int(np.sqrt(height * width / 40_000)))
    sample = image[::skip, ::skip]
    y, x = (
        np.linspace(-1, 1, length)[::skip] if length > 1 else np.zeros(1)
        for length in (height, width)
    )
    planes = [((y**down)[:, None] * x**across).ravel() for down, across in _TERMS]
    grid = np.stack(planes, axis=-1)
    level = np.log(np.maximum(sample, 1)).reshape(-1, 3)
    green = level[:, 1]
    # The brightest part of each tile first: a field's corners may be darker than some
    # red cells in its middle.
    tile = (np.digitize(y, _EDGES)[:, None] * 8 + np.digitize(x, _EDGES)).ravel()
    bright = np.zeros(len(green), bool)
    for number in np.unique(tile):
        inside = tile == number
        bright[inside] = green[inside] >= np.quantile(green[inside], 0.85)
    weights = None
    for _ in range(6):
        if np.count_nonzero(bright) < max(1, _LEAST_BACKGROUND * len(green)):
            break
        weights, *_ = np.linalg.lstsq(grid[bright], level[bright], rcond=None)
        residual = (level - grid @ weights)[:, :2].mean(-1)
        # A tile that is all covered pulls the first fits down: what is darker goes.
        spread = max(0.02, 1.5 * float(np.median(np.abs(residual[bright]))))
        bright = np.abs(residual) < 2 * spread
        bright |= residual > 2 * spread
    if weights is None or np.exp((grid @ weights).max()) < _DARK:
        return None
    return Light(weights)


def optical_density(image: np.ndarray, light: Light) -> np.ndarray:
    """Returns optical density (h, w, 3) float32, smoothed a little, at least 0."""
    density = light.over(image.shape)
    density -= np.log(np.maximum(image, 0.5))
    for channel in range(3):
        plane = density[..., channel]
        ndimage.gaussian_filter(plane, _SMOOTHING, output=plane, truncate=3)
    return np.maximum(density, 0, out=density)


@dataclasses.dataclass(frozen=True, slots=True)
class Stain:
    """The groups of colour, and which of them are nuclear stain."""

    centres: np.ndarray  # (k, 3) float32, optical density
    nuclear: np.ndarray  # (k,) bool
    strength: float  # of the main group of them


def find_stain(density: np.ndarray, settings: StainSettings) -> Stain | None:
    """Groups the colours of a field, or returns None where nothing is stained so."""
    colours = density[density.mean(-1) > settings.stained]
    if len(colours) < _LEAST_COLOURS:
        return None
    rng = np.random.default_rng(settings.seed)
    # As many pixels of each strength, for one nucleus among a thousand red cells would
    # have no group of its own.
    red = colours[:, 0]
    strata = np.minimum((red / _STRATUM).astype(np.int64), _STRATA - 1)
    most = settings.sample // _STRATA
    order = rng.permutation(len(colours))
    chosen = [order[strata[order] == stratum][:most] for stratum in range(_STRATA)]
    sample = colours[np.concatenate(chosen)]
    count = min(settings.clusters, len(np.unique(sample.round(3), axis=0)))
    step = max(1, len(colours) // 100_000)
    # One thread: rounding does not depend on the machine, and a busy one is not slowed.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer colours than groups
        means = KMeans(count, n_init="auto", random_state=settings.seed)
        means.fit(sample * _WEIGHTS)
        nearest = means.predict(colours[::step] * _WEIGHTS)
    centres = np.concatenate([means.cluster_centers_ / _WEIGHTS, np.zeros((1, 3))])
    # Most of what absorbs red light in a field is its nuclei: specks of precipitated
    # stain are darker, but few.
    groups = np.bincount(nearest, minlength=len(centres))
    strengths = strength(centres)
    dark = strengths >= settings.least
    if not dark.any():
        return None
    main = strengths[np.argmax(dark * groups * strengths**2)]
    nuclear = dark & (strengths >= settings.share * main)
    return Stain(centres.astype(np.float32), nuclear, float(main))


def strength(density: np.ndarray) -> np.ndarray:
    """Returns how much nuclear stain an optical density (…, 3) speaks for: (…).

    Nuclei absorb red and, even more, green light; red cells only the one, cytoplasm
    more of the other than of it.
    """
    return np.minimum(density[..., 0], _GREEN * density[..., 1])


def pale(density: np.ndarray, settings: StainSettings) -> np.ndarray:
    """Returns which pixels (h, w) bool are stained, but not as nuclei are."""
    stained = density.mean(-1) > settings.stained
    return stained & (strength(density) < settings.least)


def nuclear(density: np.ndarray, stain: Stain) -> np.ndarray:
    """Returns which pixels (h, w) bool are nearest to nuclear stain."""
    best = np.full(density.shape[:2], np.inf, np.float32)
    mask = np.zeros(density.shape[:2], bool)
    for centre, is_nuclear in zip(stain.centres, stain.nuclear, strict=True):
        far = np.zeros(density.shape[:2], np.float32)
        for channel in range(3):
            far += (_WEIGHTS[channel] * (density[..., channel] - centre[channel])) ** 2
        nearer = far < best
        mask[nearer] = is_nuclear
        best[nearer] = far[nearer]
    # The pixel at the outline is a mixture that no group is of.
    outline = np.asarray(ndimage.binary_dilation(mask), bool) & ~mask
    return mask | (outline & (strength(density) > stain.strength / 2))


# Powers of y and x of the polynomial of the light.
_TERMS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))
_EDGES = np.linspace(-1, 1, 7)[1:-1]  # between the tiles that it is fitted to
_DARK = 40.0  # grey levels: no lamp shines through what is darker
_LEAST_BACKGROUND = 0.01  # of the field's pixels
_SMOOTHING = 0.8  # pixels: noise goes, outlines stay
_LEAST_COLOURS = 30  # pixels that are stained at all
_STRATUM, _STRATA = 0.1, 16  # of optical density of red light
# Red cells that overlap are as dark as nuclei but in red light.
_WEIGHTS = np.array([2.0, 0.7, 0.7], np.float32)
_GREEN = 0.6  # of the density of green light, against that of red
