"""A page that compares runs: side by side, paired, and in what they differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from allcls_jax import DISCLAIMER
from allcls_jax.errors import InputError
from allcls_jax.evaluation.report import comparison_items as parts
from allcls_jax.evaluation.report.comparison_items import Named
from allcls_jax.evaluation.report.notices import Notice, notices
from allcls_jax.evaluation.report.parts import Absent, Item
from allcls_jax.evaluation.report.record import LADDER, Folder, Missing, damaged
from allcls_jax.evaluation.report.rendering import page
from allcls_jax.evaluation.report.tables import KINDS

MOST = 6  # as many as there are colours and markers

_CONTENTS = (
    ("runs", "The runs"),
    ("side-by-side", "Side by side"),
    ("paired", "Paired comparison"),
    ("curves", "Curves"),
    ("partition", "Test images in common"),
    ("settings", "Differing settings"),
    ("glossary", "What the figures mean"),
    ("notices", "Notices"),
)


def render(folders: Sequence[Folder]) -> str:
    """Returns the page.

    Args:
      folders: two to `MOST` runs or cross-validations; the first is compared to each
        other one.

    Raises:
      InputError: if one is a ladder, or there are too many, or one given twice.
    """
    _check(folders)
    named = dict(zip("ABCDEF", folders, strict=False))
    items: dict[str, Item] = {
        name: _attempt(build, named)
        for name, build in {
            "runs": parts.runs,
            "figures": parts.figures,
            "forest": parts.forest,
            "roc": parts.roc,
            "precision_recall": parts.precision_recall,
            "reliability": parts.reliability,
            "settings": parts.settings,
        }.items()
    }
    items["common"] = _attempt(parts.common, named)
    items["paired"], items["differences"] = _pairs(named)
    return page(
        "comparison.html",
        title=f"Comparison of {len(folders)} runs",
        subtitle="; ".join(f"{letter}: {run.name}" for letter, run in named.items()),
        disclaimer=DISCLAIMER,
        notes=parts.notes_of(named),
        contents=_CONTENTS,
        page=items,
        notices=_notices(folders),
    )


def _check(folders: Sequence[Folder]) -> None:
    if len(folders) > MOST:
        raise InputError(
            f"{len(folders)} folders: at most {MOST} can be told apart in one page; "
            "name fewer"
        )
    for folder in folders:
        if folder.kind == LADDER:
            raise InputError(
                f"{folder.path}: holds {KINDS[LADDER]}; to compare its rungs name "
                "their folders"
            )
    paths: list[Path] = [folder.path.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path}: is given twice; name different runs")


def _attempt(build: Callable[[Named], Item], named: Named) -> Item:
    try:
        with damaged(" or ".join(str(run.path) for run in named.values())):
            return build(named)
    except Missing as missing:
        return Absent(reason=str(missing))


def _pairs(named: Named) -> tuple[list[tuple[str, Item]], Item]:
    """Returns a table for each run against the first one, and a figure of all."""
    (first, one), *others = named.items()
    tables: list[tuple[str, Item]] = []
    found: dict[str, dict[str, Any]] = {}
    for letter, other in others:
        item = _attempt(lambda _, other=other: parts.pair(one, other), named)
        if not isinstance(item, Absent):
            found[letter] = item
            item = parts.paired((first, letter), item)
        tables.append((f"{letter} against {first}", item))
    if not found:
        return tables, Absent(reason="no run can be set against the first one")
    return tables, parts.differences(named, found)


def _notices(folders: Sequence[Folder]) -> list[Notice]:
    return list(dict.fromkeys(line for folder in folders for line in notices(folder)))
