"""Patients who take no part at all: a JSON list in the file that `data.without` names.

Once the file was read, the setting tells what it held as well, as in
`left_out.json@sha256:…`: the file may move, whom it names may not change.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from allcls_jax.data.cells import CellTable
from allcls_jax.errors import InputError, list_problems

_MARK = "@sha256:"


class LeftOut(NamedTuple):
    """Patients who take no part, ascending, and the setting that says so for good."""

    patients: tuple[str, ...] = ()
    setting: str | None = None

    def rest(self, table: CellTable, rows: np.ndarray) -> np.ndarray:
        """Returns those of the rows (n,) that take part.

        Raises:
          InputError: if somebody is not in the table.
        """
        unknown = np.setdiff1d(self.patients, table.patient).tolist()
        if unknown:
            raise list_problems(
                f"data.without = {self.setting!r}",
                (f"no such patient as {name}" for name in unknown),
                remedy="Take them out of the file, or write them as the data does",
            )
        return rows[~np.isin(table.patient[rows], self.patients)]


def read(setting: str | None) -> LeftOut:
    """Returns whom the setting `data.without` leaves out.

    Raises:
      InputError: if the file cannot be read, or holds others than it did.
    """
    if setting is None:
        return LeftOut()
    path, _, held = setting.partition(_MARK)
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError(f"{type(content).__name__} where a list should be")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"data.without = {setting!r}: must be a JSON file with a list of patients, "
            f'as in ["12", "H7"] ({type(error).__name__}: {error}); where it has '
            "moved, give --config.data.without=FILE"
        ) from error
    patients = tuple(sorted(set(map(str, content))))
    digest = hashlib.sha256("\n".join(patients).encode()).hexdigest()[:16]
    if held and held != digest:
        raise InputError(
            f"data.without = {setting!r}: the file names other patients than it did "
            f"({_MARK[1:]}{digest}); give the former file with "
            "--config.data.without=FILE"
        )
    return LeftOut(patients, f"{path}{_MARK}{digest}")


def to_json(patients: Iterable[str]) -> str:
    """Returns the content of a file that `read` reads."""
    return json.dumps(sorted(set(patients)), indent=2, ensure_ascii=False) + "\n"
