"""Tables and the picture of what a benchmark found, from its file alone."""

import re
from collections.abc import Mapping
from pathlib import Path

from allcls_jax import terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.errors import InputError
from allcls_jax.evaluation import plots_benchmark, plots_style
from allcls_jax.experiments.benchmark.catalog import CATALOG
from allcls_jax.experiments.benchmark.record import (
    NOT_MEASURED,
    PACKAGES,
    PLATFORMS,
    Bar,
    Figure,
    Record,
    Row,
    advantage,
)

BEGIN, END = "<!-- benchmark begin -->", "<!-- benchmark end -->"


def show(record: Record) -> None:
    """Writes a record to the terminal, as a table."""
    rows = [
        (
            f"{row.what}\n{row.settings}",
            _value(row.ours, row.unit),
            "\n".join(
                f"{name}: {_value(peer, row.unit)}" for name, peer in row.peers.items()
            ),
            _score(row),
            _bar(row.bar, row.against) + _MET[row.met],
        )
        for row in record.rows
    ]
    header = ("", "this package", "peers", "score", "must reach")
    terminal.show_table(f"Benchmark on {record.hardware}", header, rows)
    for note in record.notes:
        terminal.say(note)


def markdown(records: Mapping[str, Record]) -> str:
    """Returns the README's table, a column for each platform."""
    found = {
        platform: {row.key: row for row in record.rows}
        for platform, record in records.items()
    }
    header = ["", "must reach", *(_heading(name, records) for name in PLATFORMS)]
    lines = [header, ["---"] * len(header)]
    for key, entry in CATALOG.items():
        rows = [found.get(platform, {}).get(key) for platform in PLATFORMS]
        if not any(rows):
            continue
        against = next((row.against for row in rows if row), "")
        bars = [
            f"{platform.upper()} {_bar(entry.bar(platform), against)}"
            for platform in PLATFORMS
            if entry.bar(platform) is not None
        ]
        lines.append([entry.what, ", ".join(bars), *map(_cell, rows)])
    text = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    notes = [note for record in records.values() for note in record.notes]
    taken = [
        f"{platform.upper()}: `{record.provenance['command']}`, "
        f"{record.provenance['utc'][:10]}, {_told(record.provenance['versions'])}."
        for platform, record in records.items()
    ]
    return "\n\n".join([text, " ".join([*dict.fromkeys(notes), *taken])])


def rewrite(readme: Path, records: Mapping[str, Record]) -> None:
    """Puts the table between its marks in a README.

    Raises:
      InputError: if the file or the marks are not there.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--readme = {readme}: cannot be read ({error})") from error
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
    if parts[1::2] != [BEGIN, END]:
        raise InputError(
            f"--readme = {readme}: must have one line {BEGIN} and below it one {END}"
        )
    parts[2] = f"\n{markdown(records)}\n"
    write_atomically(readme, "".join(parts))


def picture(records: Mapping[str, Record]) -> bytes:
    """Returns a PNG of all rows that have a peer with a figure."""
    rows = [
        (platform, row)
        for platform, record in records.items()
        for row in record.rows
        if any(_advantages(row))
    ]
    names = list(dict.fromkeys(name for _, row in rows for name in row.peers))
    figure = plots_benchmark.advantages(
        [f"{platform.upper()}: {row.what}" for platform, row in rows],
        {
            name: [
                advantage(row.ours, row.peers.get(name, Figure()), row.unit)
                for _, row in rows
            ]
            for name in names
        },
        [row.bar.value if row.bar else None for _, row in rows],
    )
    hardware = "; ".join(
        f"{platform.upper()}: {record.hardware}" for platform, record in records.items()
    )
    notes = [note for record in records.values() for note in record.notes]
    return plots_style.to_png(figure, " ".join([hardware + ".", *dict.fromkeys(notes)]))


_MET = {True: "  reached", False: "  MISSED", None: ""}


def _advantages(row: Row) -> list[float | None]:
    return [advantage(row.ours, peer, row.unit) for peer in row.peers.values()]


def _told(versions: Mapping[str, str | None]) -> str:
    found = [
        f"{name} {versions[name]}" for name in ("jax", *PACKAGES) if versions.get(name)
    ]
    return ", ".join(found)


def _heading(platform: str, records: Mapping[str, Record]) -> str:
    if platform not in records:
        return platform.upper()
    return f"{platform.upper()}: {records[platform].hardware}"


def _cell(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    if row.ours.value is None:
        return row.ours.note or NOT_MEASURED
    value = _value(row.ours, row.unit)
    details = [f"{name} {_value(peer, row.unit)}" for name, peer in row.peers.items()]
    if row.settings:
        details.append(row.settings)
    score = f"**{_score(row)}**, " if row.against and row.score is not None else ""
    missed = " (missed)" if row.met is False else ""
    return f"{score}{value}{missed}" + (f"; {', '.join(details)}" if details else "")


def _score(row: Row) -> str:
    if row.score is None:
        return ""
    if not row.against:
        return _value(row.ours, row.unit)
    return f"{_number(row.score)} × {row.against}"


def _bar(bar: Bar | None, against: str) -> str:
    if bar is None:
        return ""
    return f"{bar} ×" if against else str(bar)


def _value(figure: Figure, unit: str) -> str:
    if figure.value is None:
        return figure.note or NOT_MEASURED
    return f"{_number(figure.value)} {unit}".strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _escaped(text: str) -> str:
    """A cell of a table has one line, and bars divide cells."""
    return text.replace("|", "\\|").replace("\n", " ")
