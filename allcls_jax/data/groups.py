"""Which patients share cells, and must therefore stay on one side of a split.

C-NMC 2019 holds the same cells under different patient ids. Patients with
byte-identical images are always joined; those with nearly identical ones where an
audit, or the user, names them.
"""

import dataclasses
import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from allcls_jax.data.cells import CellTable
from allcls_jax.errors import InputError, list_problems

# Patients that a group's name tells: a name of hundreds would fill every table.
_NAMED = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Groups:
    """Patients joined by the cells they share.

    Attributes:
      group: (n,) str, of each row of the table: its patient, or the patients that are
        joined with it as `1+2+7`, the last of very many as `… 30 more`.
      cell: (n,) int64, of each row: the same number where the image is the same,
        or a copy of ours.
      twins: (m, 2) int64 numbers of cells that an audit found nearly identical.
    """

    group: np.ndarray
    cell: np.ndarray
    twins: np.ndarray

    def twins_among(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns those of the rows (k,) with a known twin among the others (l,)."""
        seen = np.unique(self.cell[others])
        pairs = np.concatenate([self.twins, self.twins[:, ::-1]])
        near = pairs[np.isin(pairs[:, 0], seen), 1]
        return rows[np.isin(self.cell[rows], np.concatenate([seen, near]))]


def find_groups(
    table: CellTable,
    path: str | None,
    *,
    copies: Sequence[tuple[str, str]] = (),
    absent: Sequence[str] = (),
) -> Groups:
    """Joins the patients of a table that share cells.

    Args:
      table: n cells.
      copies: pairs of image ids that show the same cell, made so by us.
      path: what `allcls audit` wrote, or a JSON file of lists of
        patients. None: only byte-identical images join. An audit may know more images
        and patients than the table: those that share cells with one of them that is
        not here are joined all the same.
      absent: patients who are not in the table, and may stand in lists all the same.

    Raises:
      InputError: if the file cannot be read, is of other patients than the table's, or
        names one twice or one that is not there.
    """
    file = _File((), (), (), None) if path is None else _read(path)
    if path is not None:
        _check_names(path, file, set(table.patient.tolist()), set(absent))
    content = dict(zip(table.image_id.tolist(), table.sha256.tolist(), strict=True))

    def contents(pairs: _Pairs) -> list[tuple[str, str]]:
        return [(content.get(a, a), content.get(b, b)) for a, b in pairs]

    near = contents(file.near)
    images = [*table.sha256.tolist(), *(name for pair in near for name in pair)]
    cell = _components(images, contents([*file.exact, *copies]))
    cell, twins = cell[: len(table)], cell[len(table) :].reshape(-1, 2)
    # Patients (text) and cells (numbers) are the nodes of one graph.
    patient: list[str] = table.patient.tolist()
    links = [*zip(patient, cell.tolist(), strict=True), *map(tuple, twins.tolist())]
    links += [(names[0], name) for names in file.groups for name in names[1:]]
    names, index = np.unique(patient, return_inverse=True)
    group = _names(names, _components(names.tolist(), links))[index]
    return Groups(group, cell, twins)


_Pairs = Sequence[tuple[str, str]]


class _File(NamedTuple):
    """What a file tells of patients and images; `patients` None: not whom it is of."""

    groups: Sequence[Sequence[str]]
    exact: _Pairs
    near: _Pairs
    patients: frozenset[str] | None


def _components(
    nodes: Sequence[Hashable], links: Iterable[Sequence[Hashable]]
) -> np.ndarray:
    """Returns (n,) int64: the same number for nodes that chains of links join.

    Links may name other nodes, too.
    """
    number: dict[Hashable, int] = {}
    for node in nodes:
        number.setdefault(node, len(number))
    ends = [[number.setdefault(node, len(number)) for node in link] for link in links]
    first, second = np.array(ends, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), (len(number),) * 2)
    _, component = connected_components(graph, directed=False)
    return component[[number[node] for node in nodes]].astype(np.int64)


def _names(patients: np.ndarray, component: np.ndarray) -> np.ndarray:
    """Returns the name of each patient's group; patients are in the order of names."""
    members: dict[int, list[str]] = {}
    for name, value in zip(patients.tolist(), component.tolist(), strict=True):
        members.setdefault(value, []).append(name)
    told = {}
    for value, names in members.items():
        more = [f"… {len(names) - _NAMED} more"] if len(names) > _NAMED else []
        told[value] = "+".join(names[:_NAMED] + more)
    return np.array([told[value] for value in component.tolist()], dtype=str)


def _read(path: str) -> _File:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            content = {"groups": content}
        groups = [_list(names) for names in _list(content["groups"])]
        exact, near = (
            [(str(one), str(other)) for one, other, *_ in map(_list, content[name])]
            if name in content
            else []
            for name in ("exact_duplicates", "near_duplicates")
        )
        patients = content.get("patients")
        if patients is not None:
            patients = frozenset(map(str, _list(patients)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data.groups = {path!r}: must be what the audit wrote, or a JSON file of "
            'lists of patients, as in [["1", "2"], ["H1", "H2"]] '
            f"({type(error).__name__}: {error})"
        ) from error
    lists = [[str(name) for name in names] for names in groups]
    return _File(lists, exact, near, patients)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} where a list should be")
    return value


def _check_names(path: str, file: _File, here: set[str], absent: set[str]) -> None:
    """Refuses names that stand twice, that nobody bears, or another data set's."""
    seen: set[str] = set()
    for name in (name for names in file.groups for name in names):
        if name in seen:
            raise InputError(
                f"data.groups = {path!r}: patient {name!r} stands there twice; join "
                "the groups, and name each patient once"
            )
        seen.add(name)
    if file.patients is None:
        if unknown := sorted(seen - here - absent):
            raise InputError(
                f"data.groups = {path!r}: no such patients as {', '.join(unknown)}; "
                "take them out, or write them as the data does"
            )
    elif missing := sorted(here - file.patients):
        raise list_problems(
            f"data.groups = {path!r}: is the audit of other cells",
            (f"patient {name} is not in it" for name in missing),
            remedy="Audit these: allcls audit DIR --out FILE",
        )
