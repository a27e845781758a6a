"""The parts of a page about the run itself: what was run, on what, which model."""

from collections.abc import Mapping, Sequence
from typing import Any

from allcls_jax import config_files, terminal
from allcls_jax.evaluation.report.numbers import SPLITS, count, short_hash
from allcls_jax.evaluation.report.parts import Builder, Facts, Table
from allcls_jax.evaluation.report.record import (
    CROSS_VALIDATION,
    LADDER,
    RUN,
    Folder,
    Missing,
    attempt,
)

KINDS = {
    RUN: "a single run",
    CROSS_VALIDATION: "a cross-validation",
    LADDER: "a ladder of leaks",
}

_SOURCES = {
    "cnmc": "C-NMC 2019",
    "synthetic": "synthetic cells, drawn by this package",
    "folder": "a folder of the user's own cells",
}

_NO_GROUPS = "none given: every patient is a group"
_USES = ("train", "validation", "test")


def what_was_run(folder: Folder) -> Facts:
    """Returns command, code, machine, time and seed."""
    record = folder.result("provenance")
    device = record.get("device") or {}
    versions = record.get("versions") or {}
    git = record.get("git")
    seconds = folder.results.get("seconds")
    rows = [
        ("Folder", f"{folder.name} ({KINDS[folder.kind]})"),
        ("Command", str(record.get("command") or _not_recorded())),
        ("Finished (UTC)", str(record.get("utc") or _not_recorded())),
        (
            "Took",
            _not_recorded() if seconds is None else terminal.duration(float(seconds)),
        ),
        ("Seed", seeds(folder)),
        ("Code", code_version(git, versions)),
        ("Device", device_name(device)),
        (
            "Versions",
            ", ".join(
                f"{name} {version}" for name, version in versions.items() if version
            )
            or _not_recorded(),
        ),
    ]
    if folder.kind == CROSS_VALIDATION:
        rows.insert(1, ("Models trained", str(len(folder.results.get("runs") or []))))
    return Facts(rows=rows)


def seeds(folder: Folder) -> str:
    """Returns the seeds of the run or of all of its models."""
    if folder.detail is not None:
        return seeds(folder.detail)
    if folder.kind == CROSS_VALIDATION:
        found = sorted({int(run["seed"]) for run in folder.result("runs")})
        return ", ".join(map(str, found))
    config, missing = attempt(folder.config)
    return _not_recorded() if missing else str(config.get("seed"))


def code_version(git: Mapping[str, Any] | None, versions: Mapping[str, Any]) -> str:
    """Returns version and commit, and whether files differed from it."""
    version = versions.get("allcls-jax")
    name = f"allcls-jax {version}" if version else "allcls-jax"
    if not git:
        return f"{name}, installed (no git commit recorded)"
    dirty = ", uncommitted changes unknown"
    if git.get("dirty") is not None:
        dirty = ", with uncommitted changes" if git["dirty"] else ""
    return f"{name}, git {short_hash(git.get('commit'))}{dirty}"


def device_name(device: Mapping[str, Any]) -> str:
    """Returns what it was computed on."""
    if not device:
        return _not_recorded()
    number = device.get("count") or 1
    times = f"{number} × " if number > 1 else ""
    return (
        f"{times}{device.get('kind')} ({device.get('platform')}), {device.get('host')}"
    )


def data(folder: Folder) -> Facts:
    """Returns source, fingerprint and split of the cells."""
    record = folder.result("data")
    source = str(record.get("source"))
    split = str(record.get("split"))
    leaky = record.get("leaky")
    rows = [
        ("Source", _SOURCES.get(source, source)),
        ("Fingerprint", str(record.get("fingerprint") or _not_recorded())),
        ("Split", SPLITS.get(split, split)),
        (
            "Patients on both sides",
            yes_or_no(leaky, yes="yes: this split leaks"),
        ),
    ]
    if record.get("test_set"):
        rows.append(("Test set", str(record["test_set"])))
    if "groups" in record:
        rows.append(("Groups of patients", str(record["groups"] or _NO_GROUPS)))
    rows += [
        (f"Left out: {reason}", count(number))
        for reason, number in (record.get("left_out") or {}).items()
    ]
    if record.get("skipped") is not None:
        rows.append(("Images that could not be read", count(record["skipped"])))
    return Facts(rows=rows)


def partition(folder: Folder) -> Table:
    """Returns how many images, patients and groups each side has, and shares."""
    record = folder.result("data")
    rows = record.get("partition")
    if rows:
        return _partition(rows)
    counts = record.get("counts")
    if not counts:
        raise Missing("results.json holds no data.partition and no data.counts")
    shown = [
        [
            use,
            *(
                count(counts[use].get(key))
                for key in ("images", "patients", "ALL", "HEM")
            ),
        ]
        for use in ("all", *_USES)
        if use in counts
    ]
    return Table(
        caption="Images and patients of each part of the split",
        header=("Used for", "Images", "Patients", "ALL", "HEM"),
        rows=shown,
        notes=[
            "Groups and twins were not recorded by the version that wrote this run."
        ],
    )


def _partition(rows: Sequence[Mapping[str, Any]]) -> Table:
    named = any("run" in row for row in rows)
    keys = ("images", "patients", "groups", "ALL", "HEM", "shared_groups", "twins")
    header = ["Used for", "Images", "Patients", "Groups", "ALL", "HEM"]
    return Table(
        caption="Who trains, who validates, who tests",
        header=[*(["Model"] if named else []), *header, "Groups shared", "Twins"],
        rows=[
            [
                *([str(row.get("run", ""))] if named else []),
                str(row.get("use")),
                *(count(row.get(key)) for key in keys),
            ]
            for row in rows
        ],
        text=frozenset({1}) if named else frozenset(),
        notes=[
            "A group is the patients that share cells. “Groups shared” counts the "
            "groups of a part that are tested too, “Twins” the test images that have a "
            "near-identical one in it. Both are 0 in a split that keeps its promise."
        ],
    )


def weights(folder: Folder) -> Facts:
    """Returns the network and where its weights come from."""
    record = folder.result("weights")
    config, missing = attempt(folder.config)
    numbers = folder.results.get("parameters") or {}
    rows = []
    if not missing:
        model = config.get("model") or {}
        rows.append(("Network", f"{model.get('name')}, head {model.get('head')}"))
    rows += [
        ("Backbone weights", str(record.get("source") or _not_recorded())),
        ("File", str(record.get("file") or "none")),
        ("sha256", str(record.get("sha256") or "none")),
    ]
    rows += [
        (f"Parameters, {name}", count(numbers.get(name)))
        for name in ("total", "trainable", "frozen")
        if name in numbers
    ]
    return Facts(rows=rows)


def layers(folder: Folder) -> Table:
    """Returns the layer table of the paper's figure 7, of this network."""
    rows = [
        [
            str(layer["name"]),
            " × ".join(map(str, layer["output"])),
            count(layer["parameters"]),
            str(layer.get("state") or ""),
        ]
        for layer in folder.result("layers")
    ]
    numbers = folder.results.get("parameters") or {}
    totals = [
        [name, "", count(numbers[name]), ""]
        for name in ("total", "trainable", "frozen")
        if name in numbers
    ]
    return Table(
        caption="Layers",
        header=("Layer", "Output", "Parameters", "State"),
        rows=[*rows, *totals],
        strong=frozenset(range(len(rows), len(rows) + len(totals))),
        notes=[
            "The paper's network, VGG19, has 26,447,682 parameters, 6,423,298 of them "
            "trainable; some counts in its printed rows are misprints, its totals are "
            "right."
        ],
    )


def settings(folder: Folder) -> Table:
    """Returns every setting of the run."""
    flat = config_files.flatten(folder.config())
    return Table(
        caption="Every setting, as in config.json",
        header=("Field", "Value"),
        rows=[[name, str(value)] for name, value in flat.items()],
        text=frozenset({1}),
    )


def yes_or_no(value: bool | None, *, yes: str = "yes") -> str:
    """Returns what was recorded of a question."""
    if value is None:
        return _not_recorded()
    return yes if value else "no"


def _not_recorded() -> str:
    return "not recorded"


RUN_ITEMS: dict[str, Builder] = {
    "what_was_run": what_was_run,
    "data": data,
    "partition": partition,
    "weights": weights,
    "layers": layers,
    "settings": settings,
}
