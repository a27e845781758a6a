"""What is wrong with a set of cells before anything is learnt from it.

Broken and odd files, cells that are there twice, and what follows from them: patients
that share cells, twins in two parts or folds, twins with different labels. Nothing is
mended or left out here.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from allcls_jax.data import inspection, twins
from allcls_jax.data.cells import (
    ALL,
    HEM,
    NO_FOLD,
    UNLABELLED,
    CellFile,
    table_from_rows,
)
from allcls_jax.data.cnmc import FINAL_PATIENT
from allcls_jax.data.inspection import Inspected, Reason

# Of a picture that is there more often, pairs are formed with its first copy only:
# a placeholder in thousands of files would make millions of them.
_MOST_COPIES = 20

LABELS = {ALL: "ALL", HEM: "HEM", UNLABELLED: "unlabelled"}


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one cell, by their numbers; `first` < `second`."""

    first: int
    second: int
    distance: float = 0.0  # of the coarse looks, grey levels
    agreement: float = 1.0  # of the fine looks
    view: tuple[int, bool] = (0, False)
    identical: bool = False  # byte by byte


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Patients that share cells.

    Attributes:
      patients: at least two, in the order of the data.
      weakest: agreement of the pair without which the group would fall apart; of all
        pairs between the same patients, the best one counts.
    """

    patients: tuple[str, ...]
    weakest: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found; rows are numbers in `files`."""

    files: list[Inspected]
    pairs: list[Pair]  # by first and second
    groups: list[Group]
    distance: float
    agreement: float

    def cells(self, pair: Pair) -> tuple[CellFile, CellFile]:
        """Returns the two cells of a pair."""
        return self.files[pair.first].cell, self.files[pair.second].cell

    def crossing(self) -> list[Pair]:
        """Returns the pairs in two parts or two folds."""
        return [pair for pair in self.pairs if len({*map(place, self.cells(pair))}) > 1]

    def conflicts(self) -> list[Pair]:
        """Returns the pairs of which one is labelled ALL and the other HEM."""
        return [
            pair
            for pair in self.pairs
            if {cell.label for cell in self.cells(pair)} == {ALL, HEM}
        ]

    def divided(self) -> dict[str, list[str]]:
        """Returns the parts and folds of each patient who is in two or more."""
        places: dict[str, dict[str, None]] = defaultdict(dict)
        for file in self.files:
            places[file.cell.patient][place(file.cell)] = None
        return {name: list(where) for name, where in places.items() if len(where) > 1}

    def to_json(self) -> dict[str, Any]:
        """Returns the record that is written, without how it came about."""
        table = table_from_rows(
            (*file.cell.record(), file.sha256, file.area)
            for file in self.files
            if file.readable
        )
        ids = [file.cell.image_id for file in self.files]
        near = [pair for pair in self.pairs if not pair.identical]
        return {
            "data": {
                "fingerprint": table.fingerprint(),
                "files": len(self.files),
                **table.counts(),
            },
            "settings": {
                "distance": self.distance,
                "agreement": self.agreement,
                "coarse_look": f"box of the cell, {twins.GRID} x {twins.GRID} RGB",
                "fine_look": f"texture of the cell, {twins.PATCH} x {twins.PATCH}",
            },
            "counts": self.counts(),
            "patients": list(dict.fromkeys(file.cell.patient for file in self.files)),
            "groups": [list(group.patients) for group in self.groups],
            "groups_weakest_agreement": [
                round(group.weakest, 3) for group in self.groups
            ],
            "exact_duplicates": [
                [ids[pair.first], ids[pair.second]]
                for pair in self.pairs
                if pair.identical
            ],
            "near_duplicates": [
                [ids[pair.first], ids[pair.second], round(pair.distance, 3)]
                for pair in near
            ],
            "near_evidence": [
                {
                    "agreement": round(pair.agreement, 3),
                    "quarter_turns": pair.view[0],
                    "mirrored": pair.view[1],
                }
                for pair in near
            ],
            "cross_fold": {
                "pairs": [
                    [*(cell.image_id for cell in cells), *map(place, cells)]
                    for cells in map(self.cells, self.crossing())
                ],
                "patients": [
                    [patient, *places] for patient, places in self.divided().items()
                ],
            },
            "label_conflicts": [
                [*(c.image_id for c in cells), *(LABELS[c.label] for c in cells)]
                for cells in map(self.cells, self.conflicts())
            ],
            "broken": [
                {
                    "image_id": file.cell.image_id,
                    "patient": file.cell.patient,
                    "file": file.cell.source.name,
                    "reason": str(reason),
                    "detail": detail,
                }
                for file in self.files
                for reason, detail in file.oddities
            ],
        }

    def counts(self) -> dict[str, int]:
        """Returns how much of everything was found."""
        crossing = self.crossing()
        reasons = Counter(r for file in self.files for r, _ in file.oddities)
        return {
            "exact_pairs": sum(pair.identical for pair in self.pairs),
            "exact_pairs_across": sum(pair.identical for pair in crossing),
            "near_pairs": sum(not pair.identical for pair in self.pairs),
            "near_pairs_across": sum(not pair.identical for pair in crossing),
            "near_pairs_turned": sum(pair.view != (0, False) for pair in self.pairs),
            "images_with_twin": len(
                {i for p in self.pairs for i in (p.first, p.second)}
            ),
            "images_with_twin_across": len(
                {i for p in crossing for i in (p.first, p.second)}
            ),
            "patients_across": len(self.divided()),
            "label_conflicts": len(self.conflicts()),
            "groups": len(self.groups),
            "patients_in_groups": sum(len(group.patients) for group in self.groups),
            **{str(reason): reasons[reason] for reason in Reason},
        }


def find(
    cells: Sequence[CellFile],
    *,
    distance: float = twins.DISTANCE,
    agreement: float = twins.AGREEMENT,
) -> Findings:
    """Looks at every cell, and for twins of each among the others.

    Args:
      cells: of any reader; their image ids are unique.
      distance: as `twins.find_twins`.
      agreement: likewise.
    """
    files = inspection.inspect_all(cells)
    copies: dict[str, list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        if file.sketch is not None:
            copies[file.sha256].append(row)
    pairs = [
        Pair(one, other, identical=True)
        for rows in copies.values()
        for i, one in enumerate(_paired(rows))
        for other in rows[i + 1 :]
    ]
    # One of each: copies of one picture would crowd out its other twins.
    different = list(copies.values())
    sketches = [one for one in (files[r[0]].sketch for r in different) if one]
    for found in twins.find_twins(sketches, distance=distance, agreement=agreement):
        pairs += [
            _pair(one, other, found)
            for one in _paired(different[found.first])
            for other in _paired(different[found.second])
        ]
    pairs.sort(key=lambda pair: (pair.first, pair.second))
    return Findings(
        files=files,
        pairs=pairs,
        groups=_groups(files, pairs),
        distance=distance,
        agreement=agreement,
    )


def place(cell: CellFile) -> str:
    """Returns part and official fold of a cell, as `train fold 0`."""
    return cell.part if cell.fold == NO_FOLD else f"{cell.part} fold {cell.fold}"


def _paired(copies: list[int]) -> list[int]:
    """Returns those of identical images that are paired with every other."""
    return copies if len(copies) <= _MOST_COPIES else copies[:1]


def _pair(one: int, other: int, found: twins.Twins) -> Pair:
    """Returns a pair as found, or the other way round."""
    view = found.view
    if one > other:
        turns, mirror = view
        one, other = other, one
        # Mirrored views undo themselves.
        view = view if mirror else (-turns % 4, False)
    return Pair(one, other, found.distance, found.agreement, view)


def _groups(files: Sequence[Inspected], pairs: Sequence[Pair]) -> list[Group]:
    """Joins patients that share cells, by the best agreeing pairs first."""
    # Patients, and images of nobody known: those join the patients whose cells they
    # are, without joining all that are in the final part.
    members: dict[Hashable, list[Hashable]] = {}
    weakest: dict[int, float] = {}

    def node(row: int) -> Hashable:
        patient = files[row].cell.patient
        return row if patient == FINAL_PATIENT else patient

    for row in range(len(files)):
        members.setdefault(node(row), [node(row)])
    for pair in sorted(pairs, key=lambda pair: -pair.agreement):
        one, other = members[node(pair.first)], members[node(pair.second)]
        if one is not other:
            if _patients(one) and _patients(other):
                weakest[id(one)] = pair.agreement
            elif _patients(other):
                one, other = other, one
            one += other
            members.update(dict.fromkeys(other, one))
    order = {name: i for i, name in enumerate(members)}
    groups = []
    for names in {id(names): names for names in members.values()}.values():
        patients = sorted(_patients(names), key=lambda name: order[name])
        if len(patients) > 1:
            groups.append(Group(tuple(patients), weakest[id(names)]))
    return groups


def _patients(nodes: Sequence[Hashable]) -> list[str]:
    return [node for node in nodes if isinstance(node, str)]
