"""What a benchmark found, and the JSON file that it is kept in.

A file has one record for each platform: a run replaces its own and leaves the other.
"""

import dataclasses
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allcls_jax.atomic import write_atomically
from allcls_jax.errors import InputError

# Raise it when a key of the file changes its meaning.
FORMAT = 1

NOT_MEASURED = "not measured"
NOT_INSTALLED = "not installed"

# Peers whose versions are told.
PACKAGES = ("keras", "torch", "onnxruntime", "opencv-python-headless", "pillow")

# GPU means any accelerator: what `jax.default_backend()` calls otherwise than cpu.
PLATFORMS = ("gpu", "cpu")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value, or why there is none.

    Attributes:
      value: the median of what was measured, in the row's unit.
      low: the lowest.
      high: the highest.
      count: how many were measured.
      note: what must be known of it, or why there is no value.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Bar:
    """What must be reached.

    Attributes:
      sign: `>=` or `<=`.
      value: of the score.
    """

    sign: str
    value: float

    def met(self, score: float) -> bool:
        """Whether a score reaches it."""
        return {">=": operator.ge, "<=": operator.le}[self.sign](score, self.value)

    def __str__(self) -> str:
        return f"{ {'>=': '≥', '<=': '≤'}[self.sign] } {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      key: its name in the file, the same on every platform.
      what: what was measured, in words.
      settings: sizes, batch and precision.
      unit: of the figures: `images/s`, where more is better, `s`, or "" for a ratio.
      ours: of this package.
      peers: by name.
      against: the peer that the score is taken against; "": the score is our figure.
      bar: what the score must reach, if anything.
    """

    key: str
    what: str
    settings: str
    unit: str
    ours: Figure
    peers: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    against: str = ""
    bar: Bar | None = None

    @property
    def score(self) -> float | None:
        """What the bar is held against: how many times as fast as the peer we are."""
        if not self.against:
            return self.ours.value
        peer = self.peers.get(self.against, Figure())
        return advantage(self.ours, peer, self.unit)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without a bar or a score."""
        if self.bar is None or self.score is None:
            return None
        return self.bar.met(self.score)


@dataclasses.dataclass(frozen=True)
class Record:
    """What one command measured on one platform.

    Attributes:
      platform: one of `PLATFORMS`.
      hardware: its name for people.
      notes: what holds for all rows.
      ceilings: `matmul` in FLOP/s and `copy` in bytes/s, and how they were taken.
      rows: in the order in which they were first measured.
      provenance: command, versions, device, time.
    """

    platform: str
    hardware: str
    notes: Sequence[str]
    ceilings: Mapping[str, Any]
    rows: Sequence[Row]
    provenance: Mapping[str, Any]

    def beside(self, earlier: "Record | None") -> "Record":
        """Returns this record with the rows that only an earlier one has.

        Raises:
          InputError: if that was measured on another machine.
        """
        if earlier is None:
            return self
        check_machine(earlier, self.hardware)
        new = {row.key: row for row in self.rows}
        kept = [row for row in earlier.rows if row.key not in new]
        rows = [new.pop(row.key, row) for row in earlier.rows] + [*new.values()]
        commands = (earlier.provenance["command"], self.provenance["command"])
        told = " and ".join(dict.fromkeys(commands)) if kept else commands[1]
        return dataclasses.replace(
            self,
            rows=rows,
            provenance={**self.provenance, "command": told},
        )


def check_machine(earlier: Record | None, hardware: str) -> None:
    """Raises an `InputError` where earlier rows are of another machine."""
    if earlier is not None and earlier.hardware != hardware:
        raise InputError(
            f"--out: its rows are of {earlier.hardware}, these of {hardware}; measure "
            "all rows, or name another file"
        )


def advantage(ours: Figure, peer: Figure, unit: str) -> float | None:
    """Returns how many times as fast as a peer we are; None without both figures."""
    if ours.value is None or peer.value is None:
        return None
    return peer.value / ours.value if unit == "s" else ours.value / peer.value


def read(path: Path) -> dict[str, Record]:
    """Returns the records of a file by platform.

    Raises:
      InputError: if it is no file of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} instead of {FORMAT}")
        return {name: _record(fields) for name, fields in content["platforms"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read as a benchmark ({error!r}); remove it, or name "
            "another file with --out"
        ) from error


def write(path: Path, record: Record) -> None:
    """Writes a record into a file, beside that of the other platform if there.

    Raises:
      InputError: if the file holds something else.
      OSError: if it cannot be written.
    """
    records = read(path) if path.exists() else {}
    records[record.platform] = record
    content = {
        "format": FORMAT,
        "platforms": {
            name: dataclasses.asdict(records[name])
            for name in PLATFORMS
            if name in records
        },
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text)


def _record(fields: dict[str, Any]) -> Record:
    return Record(**{**fields, "rows": [_row(row) for row in fields["rows"]]})


def _row(fields: dict[str, Any]) -> Row:
    peers = {name: _figure(peer) for name, peer in fields["peers"].items()}
    bar = Bar(**fields["bar"]) if fields["bar"] else None
    return Row(
        **{**fields, "ours": _figure(fields["ours"]), "peers": peers, "bar": bar}
    )


def _figure(fields: dict[str, Any]) -> Figure:
    figure = Figure(**fields)
    if figure.value is not None and not math.isfinite(figure.value):
        raise ValueError(f"{figure.value} is no figure")
    return figure
