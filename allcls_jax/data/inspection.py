"""What one file holds: its hash, its cell, the looks at it, and what is odd about it.

Every file gets a record, the broken ones too: nothing here stops at one of them.
"""

import dataclasses
import enum
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from allcls_jax import terminal
from allcls_jax.data import threads, transforms
from allcls_jax.data.cells import CellFile, Part
from allcls_jax.data.twins import Sketch, sketch


class Reason(enum.StrEnum):
    """What can be wrong with a file; only the first two keep it from comparison."""

    UNREADABLE = "unreadable"
    NO_CELL = "no cell"
    NO_TEXTURE = "no texture"
    BACKGROUND = "background not black"
    BESIDE = "something bright beside the cell"
    EDGE = "cell cut by the picture's edge"
    SIZE = "unusual size"
    AREA = "unusual area"


# Grey levels of the brightest channel. What JPEG leaves on a black background stays
# near the first; so many pixels above the second, beside the cell, are something else.
_DARK, _BRIGHT, _BRIGHT_PIXELS = 24, 48, 8
# Pixels of the cell on the picture's outermost rows and columns.
_EDGE_PIXELS = 5
# Share of a part's pictures that have one size, where another size is unusual.
_ONE_SIZE = 0.9
# Times smaller or larger than the median of its part.
_UNUSUAL_AREA = 5


@dataclasses.dataclass(slots=True, kw_only=True)
class Inspected:
    """One file and what was found in it."""

    cell: CellFile
    sha256: str = ""  # of the file's bytes; empty where it cannot be read
    size: tuple[int, int] = (0, 0)  # height and width as stored, pixels; 0 unreadable
    area: int = 0  # pixels that are not background
    sketch: Sketch | None = None  # None without a cell
    oddities: list[tuple[Reason, str]] = dataclasses.field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether it is a picture."""
        return self.size != (0, 0)


def clean_image(cell: CellFile, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the picture as stored, and what is used of it.

    Returns:
      (height, width, 3) uint8, and (h, w, 3) uint8: cut to the cell's `max_side`, its
      background 0.

    Raises:
      BadImage: as `transforms.decode`.
    """
    stored = transforms.decode(data, name=cell.source.name)
    image = stored
    if cell.max_side is not None and max(image.shape[:2]) > cell.max_side:
        image = transforms.centre_square(image, cell.max_side)
    return stored, transforms.zero_background(image)


def inspect(cell: CellFile) -> Inspected:
    """Returns what is found in one file, be it broken."""
    try:
        data = cell.source.read()
        stored, image = clean_image(cell, data)
    except transforms.BadImage as error:
        return _unreadable(cell, str(error))
    except OSError as error:
        return _unreadable(cell, f"{cell.source.name}: cannot be read ({error})")
    level = _brightest(image)
    look = sketch(image)
    return Inspected(
        cell=cell,
        sha256=hashlib.sha256(data).hexdigest(),
        size=stored.shape[:2],
        area=int(np.count_nonzero(level)),
        sketch=look,
        oddities=_oddities(stored, level, look),
    )


def inspect_all(cells: Sequence[CellFile]) -> list[Inspected]:
    """Returns what is found in each file, in order, with progress on the terminal."""
    found = []
    with (
        threads.in_threads(inspect, cells) as inspected,
        terminal.track("reading", len(cells), "images") as advance,
    ):
        for one in inspected:
            found.append(one)
            advance(1)
    for part in Part:
        _mark_outliers([one for one in found if one.cell.part is part])
    return found


def _unreadable(cell: CellFile, problem: str) -> Inspected:
    problem = problem.removeprefix(f"{cell.source.name}: ")
    return Inspected(cell=cell, oddities=[(Reason.UNREADABLE, problem)])


def _oddities(
    stored: np.ndarray, level: np.ndarray, look: Sketch | None
) -> list[tuple[Reason, str]]:
    """Returns what is odd about a picture by itself.

    Args:
      stored: (height, width, 3) uint8.
      level: (h, w) uint8, the brightest channel of what is used of it.
      look: at what is used of it.
    """
    if look is None:
        return [(Reason.NO_CELL, f"brightest grey level {stored.max()}")]
    odd = []
    if look.fine is None:
        odd.append((Reason.NO_TEXTURE, "compared byte by byte only"))
    edge = np.concatenate([level[0], level[-1], level[1:-1, 0], level[1:-1, -1]])
    cut = int(np.count_nonzero(edge))
    if 2 * np.count_nonzero(edge > _DARK) > edge.size:
        odd.append((Reason.BACKGROUND, f"{edge.mean():.0f} grey levels at the edge"))
    elif cut >= _EDGE_PIXELS:
        odd.append((Reason.EDGE, f"{cut} of its pixels lie there"))
    if stored.shape[:2] == level.shape:
        beside = np.count_nonzero((_brightest(stored) > _BRIGHT) & (level == 0))
        if beside >= _BRIGHT_PIXELS:
            odd.append((Reason.BESIDE, f"{beside} pixels"))
    return odd


def _brightest(image: np.ndarray) -> np.ndarray:
    """The brightest channel; several times faster than image.max(axis=-1)."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _mark_outliers(part: Sequence[Inspected]) -> None:
    """Adds what is odd about pictures of one part beside the others."""
    readable = [one for one in part if one.readable]
    sizes = Counter(one.size for one in readable)
    usual = next(
        (size for size in sizes if sizes[size] >= _ONE_SIZE * len(readable)), None
    )
    areas = [one.area for one in readable if one.sketch is not None]
    median = float(np.median(areas)) if areas else 0.0
    for one in readable:
        if usual is not None and one.size != usual:
            (height, width), (most_high, most_wide) = one.size, usual
            one.oddities.append(
                (
                    Reason.SIZE,
                    f"{width} x {height} pixels, most are {most_wide} x {most_high}",
                )
            )
        if one.sketch is not None and not (
            median / _UNUSUAL_AREA <= one.area <= median * _UNUSUAL_AREA
        ):
            one.oddities.append(
                (
                    Reason.AREA,
                    f"the cell has {one.area:,} pixels, the median is {median:,.0f}",
                )
            )
