"""Turned copies of cells, to balance the classes: a mistake, made on purpose.

Copies that are made before images are divided put a cell into training and, turned,
into the test. The paper's class totals suggest that it was done so; the ladder of leaks
shows what it brings.
"""

import dataclasses
import hashlib

import numpy as np

from allcls_jax.data.cells import ALL, HEM, CellTable, Part, concatenate
from allcls_jax.data.packing import PackedCells
from allcls_jax.errors import InputError

# Quarter turns and mirror images other than the picture itself: (turns, mirrored). The
# view of a picture is 4 x mirrored + turns.
VIEWS = tuple((turns, mirror) for mirror in (False, True) for turns in range(4))[1:]


@dataclasses.dataclass(frozen=True)
class TurnedCopies:
    """Cells of a pack as turned copies, by row of a table of their own.

    Attributes:
      originals: the pack.
      rows: (m,) int64, of the pack: whose copy each is.
      views: (m,) int64, number in `VIEWS`.
      table: m records, with the original's patient, label, part and fold.
    """

    originals: PackedCells
    rows: np.ndarray
    views: np.ndarray
    table: CellTable

    def __len__(self) -> int:
        return len(self.table)

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the ids of each copy and its original."""
        originals = self.originals.table.image_id[self.rows].tolist()
        return list(zip(self.table.image_id.tolist(), originals, strict=True))

    @property
    def size(self) -> int:
        """Height and width of the images, pixels."""
        return self.originals.size

    @property
    def crop(self) -> int | None:
        """As of the originals."""
        return self.originals.crop

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns a copy: (size, size, 3) uint8, RGB."""
        original, view = self.original(row)
        return turn(self.originals[original], view)

    def original(self, row: int) -> tuple[int, int]:
        """Returns the row of the pack that a copy is of, and its view."""
        return int(self.rows[row]), 1 + int(self.views[row])


def turn(image: np.ndarray, view: int) -> np.ndarray:
    """Returns a view of a picture: mirrored from 4 on, then turned by quarters.

    Args:
      image: (n, n, channels).
      view: from 0, the picture itself, to 7.
    """
    mirrored, turns = divmod(view, 4)
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))


def compose(first: int, then: int) -> int:
    """Returns the view that one view of another view is."""
    (mirrored, turns), (again, more) = divmod(first, 4), divmod(then, 4)
    # Mirroring a turned picture is turning the mirrored one the other way.
    turns = more + (-turns if again else turns)
    return 4 * (mirrored ^ again) + turns % 4


# What images are read from.
Cells = PackedCells | TurnedCopies


def balance(
    cells: PackedCells, rows: np.ndarray, *, repeat: int
) -> tuple[TurnedCopies, CellTable]:
    """Makes as many copies of the rarer class as the other one has more images.

    Args:
      cells: the pack.
      rows: (n,) int64 rows of it, labelled; those of the training part, which alone is
        divided, are balanced.
      repeat: which drawing of the originals and the turns.

    Returns:
      The copies, and the table of the whole pack with them below it.

    Raises:
      InputError: if a class is missing, or so rare that views repeat, or a copy would
        be called as an image is.
    """
    rows = rows[cells.table.part[rows] == Part.TRAIN]
    label = cells.table.label[rows]
    by_class = {value: rows[label == value] for value in (ALL, HEM)}
    rare, common = sorted(by_class.values(), key=len)
    if not len(rare) * (1 + len(VIEWS)) >= len(common) > 0:
        raise InputError(
            f"data.split = 'image_copies': {len(by_class[ALL])} ALL and "
            f"{len(by_class[HEM])} HEM images cannot be balanced with the "
            f"{len(VIEWS)} quarter turns and mirror images of each; give another "
            "--config.data.split"
        )
    rng = np.random.default_rng([repeat, len(rare), len(common)])
    number = len(common) - len(rare)
    # In rounds: nobody is copied twice before everybody is once.
    turns = np.argsort(rng.random((len(rare), len(VIEWS))), axis=1)
    rounds = [
        np.stack([chosen := rng.permutation(len(rare)), turns[chosen, i]])
        for i in range(len(VIEWS))
    ]
    chosen, views = np.concatenate(rounds, axis=1)[:, :number]
    found = cells.table.take(rare[chosen])
    table = dataclasses.replace(
        found,
        image_id=_suffixed(found.image_id, views),
        sha256=_hashes(found.sha256, views),
    )
    if alike := np.intersect1d(table.image_id, cells.table.image_id).tolist():
        raise InputError(
            f"data.split = 'image_copies': a copy would be called {alike[0]}, as an "
            "image is; rename that image"
        )
    copies = TurnedCopies(cells, rare[chosen], views, table)
    return copies, concatenate([cells.table, table])


def _suffixed(names: np.ndarray, views: np.ndarray) -> np.ndarray:
    pairs = zip(names.tolist(), views.tolist(), strict=True)
    return np.array([f"{name}~{view + 1}" for name, view in pairs], dtype=str)


def _hashes(hashes: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Returns a sha256 for each copy, of its original's and the view."""
    pairs = zip(hashes.tolist(), views.tolist(), strict=True)
    return np.array(
        [
            hashlib.sha256(f"{digest} {VIEWS[view]}".encode()).hexdigest()
            for digest, view in pairs
        ],
        dtype=str,
    )
