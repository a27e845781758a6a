"""Two tables of predictions of the same cells, compared image by image.

The same resample of groups is drawn for both, so that what is hard or easy about a
patient falls out of the difference.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError, list_problems
from allcls_jax.evaluation import views
from allcls_jax.evaluation.metrics import NAMES, Undefined, number
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.uncertainty import bootstrap
from allcls_jax.evaluation.views import Entry, Given


def compare(
    one: Predictions,
    other: Predictions,
    *,
    names: Sequence[str] = NAMES,
    prevalence: float = 0.5,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Returns figures by image of both tables, and their differences.

    Args:
      one: of one or more runs; figures are averaged over its passes.
      other: likewise; of the same cells, at least in part.
      names: of `metrics.NAMES`.
      prevalence: share of ALL that PPV and NPV are stated for, in (0, 1).
      num_resamples: of the bootstrap, at least 100.
      seed: of the bootstrap.
      confidence: of the intervals, in (0, 1).

    Returns:
      `images` and `patients` that both test; `left_out`, `one` and `other` → images
      that only they test; `warnings`; and `figures`: name → `one`, `other`,
      `difference` (one less other), its `low` and `high`, and `share_below_zero`, the
      share of resamples in which one is less than other. What is undefined is None,
      with a `reason`.

    Raises:
      InputError: if a table breaks a rule, they test no image in common, or they
        contradict each other.
    """
    tests = [table.of(Split.TEST) for table in (one, other)]
    common = np.intersect1d(tests[0].image_id, tests[1].image_id)
    if not len(common):
        raise InputError(
            "the two tables test no image in common, so they cannot be compared image "
            "by image; give tables of the same cells"
        )
    kept = [rows.take(np.isin(rows.image_id, common)) for rows in tests]
    groups = _joined_groups(*kept)
    sides = [
        views.given(
            dataclasses.replace(rows, group=group),
            prevalence=prevalence,
            num_resamples=num_resamples,
            seed=seed,
            confidence=confidence,
        )
        for rows, group in zip(kept, groups, strict=True)
    ]
    # Of the same units and seed, hence the same for both.
    drawn = sides[0].drawn
    seen = [side.view(names) for side in sides]
    size = max(view.size for view in seen)
    first, second = (view.draw for view in seen)
    samples = bootstrap(drawn, size, {"one": first, "other": second})
    lacks = drawn.lacks(drawn.index(sides[0].test.group), sides[0].test.label, "group")
    values = [view.values() for view in seen]
    left_out = {
        key: len(np.setdiff1d(rows.image_id, common))
        for key, rows in zip(("one", "other"), tests, strict=True)
    }
    return {
        "images": len(common),
        "patients": len(np.unique(kept[0].patient)),
        "left_out": left_out,
        "warnings": list(_warnings(left_out, sides)),
        "figures": {
            name: _entry(
                name,
                values[0][name],
                values[1][name],
                samples["one"][name] - samples["other"][name],
                lacks,
                confidence,
            )
            for name in names
        },
    }


def _joined_groups(one: Predictions, other: Predictions) -> list[np.ndarray]:
    """Returns a name (n,) of the group of each row of both tables.

    Groups that share a patient or an image in either table are one: what depends on
    each other there is drawn together.
    """
    _check_same_cells(one, other)
    nodes = [np.char.add("1\t", one.group), np.char.add("2\t", other.group)]
    names = np.unique(np.concatenate(nodes))
    index = [np.searchsorted(names, column) for column in nodes]
    # Each group is joined to the patients it has rows of.
    patients = np.unique(np.concatenate([one.patient, other.patient]))
    ends = [len(names) + np.searchsorted(patients, x.patient) for x in (one, other)]
    size = len(names) + len(patients)
    rows, columns = np.concatenate(index), np.concatenate(ends)
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), (size, size))
    _, component = connected_components(graph, directed=False)
    return [component[found].astype(str) for found in index]


def _check_same_cells(one: Predictions, other: Predictions) -> None:
    """Raises an InputError unless both say the same of each image."""
    image, first = np.unique(one.image_id, return_index=True)
    where = first[np.searchsorted(image, other.image_id)]
    problems = [
        f"image {other.image_id[row]}: {name} is {getattr(one, name)[where[row]]} in "
        f"one and {getattr(other, name)[row]} in the other"
        for name in ("label", "patient")
        for row in np.flatnonzero(
            getattr(one, name)[where] != getattr(other, name)
        ).tolist()
    ]
    if problems:
        raise list_problems(
            "the two tables are not of the same cells",
            problems,
            remedy="Give tables of the same data set.",
        )


def _warnings(left_out: Mapping[str, int], sides: Sequence[Given]) -> Iterator[str]:
    if any(left_out.values()):
        yield (
            f"{left_out['one']} images of the one and {left_out['other']} of the other "
            "are left out: only one of the two tests them"
        )
    for number_, side in zip(("one", "other"), sides, strict=True):
        tested = {frozenset(rows.image_id.tolist()) for rows in side.passes}
        if len(tested) > 1:
            yield f"the passes of the {number_} do not test the same images"


def _entry(
    name: str,
    one: float | Undefined,
    other: float | Undefined,
    samples: np.ndarray,
    lacks: Mapping[int, str],
    confidence: float,
) -> Entry:
    """Returns the entry of a figure, from its value in both and resamples (b,)."""
    difference = one if isinstance(one, Undefined) else other
    if isinstance(one, float) and isinstance(other, float):
        difference = one - other
    found = views.entry(name, difference, samples, lacks, confidence)
    defined = samples[np.isfinite(samples)]
    known = found["value"] is not None and not lacks and len(defined)
    return {
        "one": number(one),
        "other": number(other),
        "difference": found.pop("value"),
        **found,
        "share_below_zero": float(np.mean(defined < 0)) if known else None,
    }
