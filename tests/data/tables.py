"""Tables of cells without images: regular ones, and random ones with planted twins."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from allcls_jax.data.cells import NO_FOLD, CellTable, concatenate, table_from_rows

Pairs = list[tuple[str, str]]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_table(
    sizes: dict[str, int], *, folds: bool = True, part: str = "train"
) -> CellTable:
    """A table of patients with that many images; HEM patients begin with H.

    Image ids are `<patient>_<number>`, in a test part `<part>/<patient>_<number>`.
    """
    rows = []
    for number, (patient, size) in enumerate(sizes.items()):
        for image in range(size):
            label = 0 if patient.startswith("H") else 1
            fold = number // 2 % 3 if folds and part == "train" else NO_FOLD
            name = (
                f"{patient}_{image}" if part == "train" else f"{part}/{patient}_{image}"
            )
            rows.append((name, patient, label, part, fold, digest(name), 100))
    return table_from_rows(rows)


def join(*tables: CellTable) -> CellTable:
    return concatenate(tables)


def patients(number: int = 12, size: int = 10) -> dict[str, int]:
    """That many patients of each class, with 10, 13, 16 and 19 images."""
    return {f"{'H' if i % 2 else ''}{i}": size + 3 * (i % 4) for i in range(2 * number)}


@dataclasses.dataclass(frozen=True)
class Planted:
    """A random table and what an audit would write of it.

    The audit knows images and patients that the table has not.
    """

    table: CellTable
    exact: Pairs
    near: Pairs
    groups: list[list[str]]

    def audit(self) -> dict[str, Any]:
        known = {name for group in self.groups for name in group}
        return {
            "patients": sorted({*self.table.patient.tolist(), *known}),
            "groups": self.groups,
            "exact_duplicates": [list(pair) for pair in self.exact],
            "near_duplicates": [[*pair, 2.5] for pair in self.near],
        }


def planted(seed: int, *, prelim: bool = False, links: int = 4) -> Planted:
    """Some 30 patients of 1 to 12 images, every eighth of both classes, shuffled.

    Args:
      seed: of everything.
      prelim: whether a preliminary part follows, with patients of its own and one of
        the training part's.
      links: identical files, pairs of each kind and lists of groups; about that many.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[str | int, ...]] = []

    def add(name: str, kind: int, part: str) -> None:
        for image in range(rng.integers(1, 13)):
            label = int(rng.integers(2)) if kind == 2 else kind
            image_id = f"{part}/{name}/{image}"
            fold = len(rows) % 3
            rows.append((image_id, name, label, part, fold, digest(image_id), 1))

    for number in range(rng.integers(26, 34)):
        kind = 2 if number % 8 == 7 else number % 2
        add(str(number), kind, "train")
    if prelim:
        for number in range(6):
            add(f"p{number}", number % 2, "prelim")
        add("3", 1, "prelim")
    table = table_from_rows(rows)
    table = table.take(rng.permutation(len(table)))
    for _ in range(links):  # also of three, and of other labels
        several = rng.integers(len(table), size=rng.integers(2, 4))
        table.sha256[several] = table.sha256[several[0]]
    ids = [*table.image_id.tolist(), *(f"gone/{i}" for i in range(4))]
    known = [*np.unique(table.patient).tolist(), "gone 1", "gone 2"]

    def pairs(number: int) -> Pairs:
        drawn = rng.permutation(len(ids))[: 2 * number].reshape(-1, 2)
        return [(ids[a], ids[b]) for a, b in drawn.tolist()]

    order = rng.permutation(known).tolist()
    return Planted(
        table,
        # The absent images are in chains: one joins what the table cannot tell.
        exact=[*pairs(links), (ids[-1], ids[0]), (ids[1], ids[-1])],
        near=[*pairs(links), (ids[2], ids[-2]), (ids[-2], ids[3])],
        groups=[order[:3], ["gone 1", *order[3:5]]]
        if "gone 1" not in order[:5]
        else [order[:3]],
    )


def closure(
    items: Iterable[Any], pairs: Iterable[Sequence[Any]]
) -> dict[Any, frozenset]:
    """Item → all that pairs join it with, by walking; slow and plain."""
    near: dict[Any, set] = {item: set() for item in items}
    for one, other in pairs:
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    found: dict[Any, frozenset] = {}
    for item in near:
        if item in found:
            continue
        seen, ahead = {item}, [item]
        while ahead:
            ahead = [x for x in {y for z in ahead for y in near[z]} if x not in seen]
            seen |= set(ahead)
        found |= dict.fromkeys(seen, frozenset(seen))
    return found


def known_twins(table: CellTable, exact: Pairs, near: Pairs) -> set[tuple[int, int]]:
    """Pairs of rows, both ways round, that show the same cell; by comparing all."""
    ids, hashes = table.image_id.tolist(), table.sha256.tolist()
    same = [(name, f"bytes {value}") for name, value in zip(ids, hashes, strict=True)]
    image = closure(ids, [*same, *exact])
    close = {(image.get(a), image.get(b)) for a, b in near}
    close |= {(b, a) for a, b in close}
    return {
        (i, j)
        for i, j in itertools.permutations(range(len(ids)), 2)
        if image[ids[i]] == image[ids[j]] or (image[ids[i]], image[ids[j]]) in close
    }


def sharing(planted: Planted, *, listed: bool = True) -> dict[str, frozenset]:
    """Patient → the patients of its group, also those that the table has not.

    Args:
      planted: the table and its audit.
      listed: whether the audit is known.
    """
    table = planted.table
    links: list[Sequence[Any]] = []
    for name, patient, value in zip(
        table.image_id.tolist(),
        table.patient.tolist(),
        table.sha256.tolist(),
        strict=True,
    ):
        links += [(("patient", patient), name), (name, f"bytes {value}")]
    if listed:
        links += planted.exact + planted.near
        for group in planted.groups:
            links += [(("patient", a), ("patient", b)) for a in group for b in group]
    found = closure([], links)
    return {
        name: frozenset(item[1] for item in found["patient", name] if len(item) == 2)
        for name in np.unique(table.patient).tolist()
    }
