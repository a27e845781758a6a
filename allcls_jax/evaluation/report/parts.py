"""What a page is made of: tables, pictures, lists of facts, and what is absent."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from allcls_jax.evaluation.report.record import Folder, Missing, damaged


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; every cell is text, and the first column names the row.

    Attributes:
      caption: what it shows, one sentence.
      header: a heading for each column.
      rows: each as long as `header`.
      text: columns, by number, that are words: aligned to the left and broken.
      notes: stand below it.
      strong: rows, by number, to be read first.
      inline: whether an interval stands beside its figure, not below it.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    strong: frozenset[int] = frozenset()
    inline: bool = False
    kind: str = "table"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure of the page.

    Attributes:
      name: unique in the page.
      svg: an element that `plots_style.to_svg` returned.
      caption: what it shows and how to read it.
    """

    name: str
    svg: str
    caption: str
    kind: str = "picture"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Pairs of a term and its value."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The figures to be read first: name, value, interval."""

    rows: Sequence[tuple[str, str, str]]
    basis: str
    kind: str = "headline"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A sentence that stands for itself."""

    text: str
    kind: str = "text"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """Stands where a piece is not available."""

    reason: str
    kind: str = "absent"


Item = Any  # one of the above, or a list of them

Builder = Callable[[Folder], Item]


def build(folder: Folder | None, builders: dict[str, Builder]) -> dict[str, Item]:
    """Returns what each builder makes of a folder, or why it is absent.

    Args:
      folder: None where there is no run to show.
      builders: name in the page → a function that may raise Missing.

    Raises:
      InputError: if a file holds something else than this package writes.
    """
    items: dict[str, Item] = {}
    for name, builder in builders.items():
        if folder is None:
            items[name] = Absent(
                reason="none of the ladder's rungs without a leak is there"
            )
            continue
        try:
            with damaged(folder.path):
                items[name] = builder(folder)
        except Missing as missing:
            items[name] = Absent(reason=str(missing))
    return items
