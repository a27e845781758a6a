"""From a picture of a microscope field to its nuclei.

Pure: a picture in, nuclei out, the same ones each time. Colours and typical size are
looked at in a reduced picture, outlines where a nucleus is some 64 pixels wide, so that
the time depends little on how fine a field is.

Only tested on drawn fields (`data.synthetic_fields`): see `CAVEAT`.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from allcls_jax.data import transforms
from allcls_jax.serving.segmentation import shapes
from allcls_jax.serving.segmentation import stain as stains
from allcls_jax.serving.segmentation.shapes import LEFT_OUT, Nucleus, ShapeSettings
from allcls_jax.serving.segmentation.stain import StainSettings

CAVEAT = (
    "Segmentation has been tested on drawn fields only. Real fields of another stain, "
    "focus or magnification may segment badly: look at the overlay."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How nuclei are found.

    Attributes:
      stain: how nuclear stain is told from the rest.
      shape: what a single nucleus looks like.
      working_width: pixels that a typical nucleus is wide where outlines are sought;
        finer fields are reduced to about that, coarser ones taken as they are.
    """

    stain: StainSettings = dataclasses.field(default_factory=StainSettings)
    shape: ShapeSettings = dataclasses.field(default_factory=ShapeSettings)
    working_width: int = 64


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """What was found in one field.

    Attributes:
      shape: height and width of the field, pixels.
      nuclei: in reading order, in rows two nuclei high.
      left_out: reason from `LEFT_OUT` → how many regions.
      notes: what is unusual about the field, each a short sentence.
    """

    shape: tuple[int, int]
    nuclei: tuple[Nucleus, ...]
    left_out: dict[str, int]
    notes: tuple[str, ...]

    @property
    def areas(self) -> np.ndarray:
        """(n,) int64, field pixels."""
        return np.array([nucleus.area for nucleus in self.nuclei], np.int64)

    def labels(self) -> np.ndarray:
        """Returns the label map (height, width) int32: k + 1 on nucleus k, else 0."""
        labels = np.zeros(self.shape, np.int32)
        for number, nucleus in enumerate(self.nuclei, 1):
            labels[nucleus.box][nucleus.mask] = number
        return labels


def segment(
    image: np.ndarray,
    *,
    typical_area: float | None = None,
    settings: Settings | None = None,
) -> Segmentation:
    """Returns the nuclei of a field.

    Args:
      image: (height, width, 3) uint8 RGB, of any size, bright where nothing lies.
      typical_area: of a nucleus, in field pixels, where the magnification is known;
        None estimates it from the field.
      settings: how nuclei are found; None: the defaults.
    """
    settings = settings or Settings()
    shape = (image.shape[0], image.shape[1])
    coarse_step = _step_to(_COARSE, shape)
    coarse = stains.reduced(image, coarse_step)
    light = stains.illumination(coarse)
    if light is None:
        return _nothing(shape, _NO_BACKGROUND)
    density = stains.optical_density(coarse, light)
    stain = stains.find_stain(density, settings.stain)
    if stain is None:
        return _nothing(shape)
    if typical_area is None:
        mask = stains.nuclear(density, stain)
        typical = shapes.typical_area(mask, settings.shape)
        if typical is None:
            return _nothing(shape)
        pale = stains.pale(density, settings.stain)
        red_cells = shapes.red_cell_area(pale)
        if red_cells is not None and typical < _LEAST_OF_RED_CELL * red_cells:
            return _nothing(shape, _PLATELETS_ONLY)
        typical_area = typical * coarse_step**2
    width = 2 * float(np.sqrt(typical_area / np.pi))
    step = max(int(width / settings.working_width), _step_to(_FINE, shape))
    if step != coarse_step:
        del density
        density = stains.optical_density(stains.reduced(image, step), light)
    mask = stains.nuclear(density, stain)
    nuclei, left_out = shapes.find_nuclei(mask, typical_area / step**2, settings.shape)
    fine = [_enlarged(nucleus, step, shape) for nucleus in nuclei]
    fine.sort(key=lambda nucleus: _reading_order(nucleus, width))
    return Segmentation(shape, tuple(fine), left_out, ())


def cut_out(
    image: np.ndarray, nucleus: Nucleus, *, scale: float, side: int
) -> np.ndarray:
    """Returns a cell as the training pictures have them: its nucleus, centred on black.

    Args:
      image: (height, width, 3) uint8 RGB, the field.
      nucleus: of that field.
      scale: field pixels per pixel of the result.
      side: of the result, pixels; a nucleus that is larger is cut.

    Returns:
      (side, side, 3) uint8 RGB, exactly 0 where the nucleus is not, nowhere else.
    """
    height, width = nucleus.mask.shape
    # The neighbourhood as well, lest the outline be mixed with black.
    length = max(height, width) + 2 * max(2, int(np.ceil(2 * scale)))
    top = nucleus.box[0].start - (length - height) // 2
    left = nucleus.box[1].start - (length - width) // 2
    rows = np.clip(np.arange(top, top + length), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + length), 0, image.shape[1] - 1)
    inside = np.zeros((length, length, 3), np.uint8)
    down, across = nucleus.box[0].start - top, nucleus.box[1].start - left
    inside[down : down + height, across : across + width][nucleus.mask] = 255
    size = max(1, round(length / scale))
    colour = transforms.resize(image[np.ix_(rows, columns)], size)
    mask = transforms.resize(inside, size)[..., :1] > 127
    cell = np.where(mask, np.maximum(colour, 1), 0).astype(np.uint8)
    return transforms.centre_square(cell, side)


_NO_BACKGROUND = (
    "no bright background: not a field in transmitted light, or all of it is covered"
)
_PLATELETS_ONLY = (
    "what is stained as nuclei are is much smaller than the red cells: platelets or "
    "debris, no nuclei"
)

# Pixels at which colours and sizes are looked at, and at most those of outlines.
_COARSE, _FINE = 1_500_000, 16_000_000
# A small lymphocyte's nucleus is about as large as a red cell.
_LEAST_OF_RED_CELL = 0.3


def _step_to(pixels: int, shape: tuple[int, int]) -> int:
    """Returns the factor that reduces a field to so many pixels at most."""
    return max(1, int(np.ceil(np.sqrt(shape[0] * shape[1] / pixels))))


def _nothing(shape: tuple[int, int], *notes: str) -> Segmentation:
    return Segmentation(shape, (), dict.fromkeys(LEFT_OUT, 0), notes)


def _enlarged(nucleus: Nucleus, step: int, shape: tuple[int, int]) -> Nucleus:
    """Returns a nucleus of the reduced picture in pixels of the field."""
    if step == 1:
        return nucleus
    share = np.pad(nucleus.mask.astype(np.float32), 2)
    # Pixel centres of the field, in pixels of the reduced picture.
    y, x = ((np.arange(length * step) + 0.5) / step - 0.5 for length in share.shape)
    soft = ndimage.gaussian_filter(share, 0.7)
    fine = ndimage.map_coordinates(soft, np.meshgrid(y, x, indexing="ij"), order=1)
    # A reduced pixel at the lower or right edge may reach beyond the field.
    top, left = ((part.start - 2) * step for part in nucleus.box)
    mask = fine[: max(0, shape[0] - top), : max(0, shape[1] - left)] > 0.5
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = (
        slice(top + rows.start, top + rows.stop),
        slice(left + columns.start, left + columns.stop),
    )
    return Nucleus(box, mask[rows, columns])


def _reading_order(nucleus: Nucleus, width: float) -> tuple[int, int]:
    rows, columns = nucleus.box
    return int((rows.start + rows.stop) / 2 // (2 * width)), columns.start
