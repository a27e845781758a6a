"""The picture of a benchmark: how many times as fast as each peer, a row each.

Rows run from top to bottom, so that a picture grows in height only. As in
`plots_curves`, the figure is returned unsigned.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from allcls_jax.evaluation.plots_style import GREY, INK, RULE, canvas, series, styled


@styled
def advantages(
    rows: Sequence[str],
    peers: Mapping[str, Sequence[float | None]],
    needed: Sequence[float | None],
) -> Figure:
    """Returns on a logarithmic axis how many times as fast as its peers this is.

    Args:
      rows: what was measured, from the top.
      peers: name → for each row how many times as fast as that peer; None without it.
      needed: for each row what must be reached, if anything.
    """
    lines = [textwrap.fill(row, 26) for row in rows]
    heights = [0.15 * (line.count("\n") + 1) + 0.17 for line in lines]
    figure, (axes,) = canvas(max(max(heights, default=0) * len(rows) + 1.2, 1.9))
    position = np.arange(len(rows))
    for (name, values), (colour, marker, _) in zip(
        peers.items(), series(), strict=False
    ):
        found = [
            (value, row)
            for value, row in zip(values, position, strict=True)
            if value is not None
        ]
        axes.plot(
            [value for value, _ in found],
            [row for _, row in found],
            color=colour,
            marker=marker,
            linestyle="none",
            label=f"against {name}",
            zorder=3,
        )
    for row, value in zip(position, needed, strict=True):
        if value is not None:
            axes.plot((value, value), (row - 0.32, row + 0.32), color=INK, linewidth=2)
    axes.plot([], [], color=INK, linewidth=2, label="must reach")
    for row in position[:-1]:
        axes.axhline(row + 0.5, color=RULE, linewidth=0.4)
    axes.axvline(1, color=GREY, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.25))
    axes.set_xticks(_ticks(*axes.get_xlim()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(position, lines)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times as fast as the peer")
    axes.grid(axis="x", which="major")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten within the limits; not too many."""
    every = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5)]
    within = [value for value in every if low <= value <= high]
    if len(within) > 7:
        within = [10.0**power for power in range(-3, 5)]
    return [value for value in within if low <= value <= high]
