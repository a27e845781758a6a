"""Fabricates folders of runs as the experiments write them, without training."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax.config import Config, DataSource, SplitKind
from allcls_jax.data.cells import CellTable
from allcls_jax.evaluation.assessment import assess
from allcls_jax.evaluation.predictions import Predictions, concatenate
from allcls_jax.models import vgg
from allcls_jax.models.preprocessing import CAFFE

NUM_RESAMPLES = 100

PROVENANCE = {
    "command": "python -m allcls_jax.main --config configs/vgg19.py:cv",
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "versions": {"python": "3.11.9", "allcls-jax": "0.1.0", "jax": "0.10.2"},
    "device": {
        "platform": "cpu",
        "kind": "cpu",
        "count": 1,
        "processes": 1,
        "host": "Linux x86_64",
    },
    "utc": "2026-11-23T12:00:00+00:00",
}


def cells(num_patients: int = 40, *, prefix: str = "", seed: int = 0) -> CellTable:
    """Returns the records of cells, half of the patients ALL, none of them drawn."""
    draw = np.random.default_rng(seed)
    patients = [
        f"{prefix}{'' if row % 2 else 'H'}{row // 2 + 1}" for row in range(num_patients)
    ]
    patient = np.repeat(patients, draw.integers(4, 22, num_patients))
    label = np.array([0 if "H" in name[len(prefix) :] else 1 for name in patient])
    ids = np.array([f"image{row:04d}" for row in range(len(patient))])
    return CellTable(
        image_id=ids,
        patient=patient,
        label=label.astype(np.int64),
        part=np.full(len(patient), "train"),
        fold=np.full(len(patient), -1, dtype=np.int64),
        sha256=np.array([f"{row:064x}" for row in range(len(patient))]),
        area=draw.integers(20_000, 60_000, len(patient)) + 9_000 * label,
    )


def predictions(
    table: CellTable,
    *,
    folds: Sequence[int] = (0, 1, 2),
    seeds: Sequence[int] = (0, 1),
    skill: float = 1.6,
) -> Predictions:
    """Returns what models of so many folds and seeds would have said."""
    names = np.unique(table.patient)
    # Every tenth patient shares cells with the next one of its class.
    group_of = {name: name for name in names.tolist()}
    for name, other in zip(names[::10].tolist(), names[1::10].tolist(), strict=False):
        label = {
            key: int(table.label[table.patient == key][0]) for key in (name, other)
        }
        if label[name] == label[other]:
            group_of[other] = name
    group = np.array([group_of[name] for name in table.patient.tolist()])
    groups = list(dict.fromkeys(group.tolist()))
    fold_of = {name: number % 3 for number, name in enumerate(groups)}
    fold = np.array([fold_of[name] for name in group.tolist()])
    offset = dict(
        zip(
            names.tolist(),
            np.random.default_rng(7).normal(0, 1, len(names)),
            strict=True,
        )
    )
    tables = []
    for test_fold in folds:
        for seed in seeds:
            draw = np.random.default_rng([test_fold, seed])
            held = [name for name in groups if fold_of[name] != test_fold][:8]
            split = np.where(
                fold == test_fold,
                "test",
                np.where(np.isin(group, held), "validation", ""),
            )
            logit = (
                skill * (2 * table.label - 1)
                + [offset[name] for name in table.patient.tolist()]
                + draw.normal(0, 1.1, len(table))
            )
            rows = np.flatnonzero(split != "")
            whole = {
                name: getattr(table, name)
                for name in ("image_id", "patient", "label", "part", "fold", "area")
            }
            tables.append(
                Predictions(
                    group=group,
                    probability=1 / (1 + np.exp(-1.4 * logit)),
                    split=split,
                    repeat=np.zeros(len(table), np.int64),
                    test_fold=np.full(len(table), test_fold, dtype=np.int64),
                    seed=np.full(len(table), seed, dtype=np.int64),
                    **whole,
                ).take(rows)
            )
    return concatenate(tables)


def config(**data: Any) -> Config:
    """Returns a configuration as a run resolves it; its cells are nowhere."""
    tree = Config().resolved(DataSource.CNMC, SplitKind.GROUPED)
    given = {"dir": "nowhere"} | data
    for name, kind in (("source", DataSource), ("split", SplitKind)):
        if name in given:
            given[name] = kind(given[name])
    tree.data = dataclasses.replace(tree.data, **given)
    return tree


def results(
    table: CellTable,
    settings: Config,
    *,
    kind: str,
    notes: Sequence[str] = (),
    weights: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what `results.json` holds."""
    counts = table.counts()
    sides = {"train": 0.6, "validation": 0.1, "test": 0.3}
    layers = vgg.layer_table(
        vgg.conv_stack(settings.model.name) + vgg.head(settings.model.head, 0.5), 224
    )
    return {
        "kind": kind,
        "data": {
            "source": str(settings.data.source),
            "fingerprint": "f1" * 32,
            "split": str(settings.data.split),
            "leaky": bool(settings.data.split and settings.data.split.leaky),
            "groups": None,
            "skipped": 0,
            "counts": {"all": counts},
            "test_set": "grouped fold 0",
            "partition": [
                {
                    **({"run": "repeat0-fold0-seed0"} if kind != "run" else {}),
                    "use": use,
                    "images": int(counts["images"] * share),
                    "patients": int(counts["patients"] * share),
                    "groups": int(counts["patients"] * share) - 1,
                    "ALL": int(counts["ALL"] * share),
                    "HEM": int(counts["HEM"] * share),
                    "shared_groups": 0,
                    "twins": 0,
                }
                for use, share in sides.items()
            ],
            "left_out": {},
        },
        "weights": weights
        or {"source": "imagenet", "file": "vgg19_notop.h5", "sha256": "ab" * 32},
        "preprocessing": dataclasses.asdict(CAFFE),
        "parameters": {"total": 26447682, "trainable": 6423298, "frozen": 20024384},
        "layers": [
            {
                "name": layer.name,
                "output": list(layer.shape),
                "parameters": layer.parameters,
                "state": ""
                if not layer.parameters
                else "frozen"
                if "block" in layer.name
                else "trainable",
            }
            for layer in layers
        ],
        "notes": list(notes),
        "seconds": 812.4,
        "provenance": PROVENANCE,
        "disclaimer": "Research use only. Not a medical device.",
    }


def history(num_epochs: int = 6, seed: int = 0) -> list[dict[str, float]]:
    """Returns the records of `metrics.jsonl`."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (num_epochs, 4))
    return [
        {
            "epoch": epoch + 1,
            "step": 8 * (epoch + 1),
            "train_loss": 0.7 * 0.7**epoch + noise[epoch, 0],
            "train_accuracy": 1 - 0.3 * 0.7**epoch - abs(noise[epoch, 1]),
            "validation_loss": 0.5 + 0.03 * (epoch - 3) ** 2 + noise[epoch, 2],
            "validation_accuracy": 0.85 - 0.01 * (epoch - 3) ** 2 + noise[epoch, 3],
        }
        for epoch in range(num_epochs)
    ]


def write_run(
    folder: Path,
    *,
    table: CellTable | None = None,
    settings: Config | None = None,
    notes: Sequence[str] = (),
    skill: float = 1.6,
) -> Path:
    """Writes the folder of a single run on test fold 0."""
    table = cells() if table is None else table
    settings = settings or config()
    rows = predictions(table, folds=(0,), seeds=(0,), skill=skill)
    _write(folder, settings, rows, results(table, settings, kind="run", notes=notes))
    _write_training(folder, table, rows, seed=0)
    return folder


def write_cross_validation(
    folder: Path,
    *,
    table: CellTable | None = None,
    settings: Config | None = None,
    notes: Sequence[str] = (),
    skill: float = 1.6,
    seeds: Sequence[int] = (0, 1),
) -> Path:
    """Writes the folder of a cross-validation: three folds, two seeds."""
    table = cells() if table is None else table
    settings = settings or config()
    rows = predictions(table, seeds=seeds, skill=skill)
    record = results(table, settings, kind="cross_validation", notes=notes)
    record["runs"] = []
    for number, (run, part) in enumerate(rows.runs()):
        name = f"repeat{run.repeat}-fold{run.test_fold}-seed{run.seed}"
        (folder / name).mkdir(parents=True)
        _write_training(folder / name, table, part, seed=number)
        best = {"epoch": 4, "step": 32}
        record["runs"].append({"folder": name, **run._asdict(), "best": best})
    _write(folder, settings, rows, record)
    return folder


def write_baselines(folder: Path) -> None:
    """Writes baselines beside the predictions of a folder."""
    model = json.loads((folder / "evaluation.json").read_text())["figures"]

    def worse(by: float) -> dict[str, Any]:
        return {
            unit: {
                name: {
                    key: number - by if isinstance(number, float) else number
                    for key, number in entry.items()
                }
                for name, entry in entries.items()
            }
            for unit, entries in model.items()
        }

    named = {"Majority class": 0.3, "Cell area": 0.15, "Texture <k-means>": 0.05}
    content = {
        "baselines": [
            {
                "name": name,
                "key": name.lower(),
                "description": f"what {name.lower()} tells",
                "figures": worse(by),
            }
            for name, by in named.items()
        ],
        "model": {"figures": model},
        "settings": {},
        "seconds": 12.0,
        "notes": [],
    }
    (folder / "baselines.json").write_text(json.dumps(content))


def write_ladder(folder: Path, rungs: Mapping[str, Path]) -> Path:
    """Writes `ladder.json` over folders of cross-validations in `folder`."""
    content: dict[str, Any] = {
        "rungs": [],
        "paper": {"accuracy": 0.9919, "images": 4453},
    }
    for key in rungs:
        found = json.loads((folder / key / "evaluation.json").read_text())
        rung = {
            "key": key,
            "title": {"grouped": "grouped folds", "image": "images at random"}[key],
            "leaky": key == "image",
            "explanation": "nothing" if key == "grouped" else "cells of one patient",
            "images": found["counts"]["images"],
            "patients": found["counts"]["patients"],
            "figures": found["figures"],
        }
        if content["rungs"]:
            first = content["rungs"][0]["figures"]["by_image"]["accuracy"]["value"]
            gain = found["figures"]["by_image"]["accuracy"]["value"] - first
            rung["gain"] = {
                "figures": {
                    "accuracy": {
                        "difference": gain,
                        "low": gain - 0.1,
                        "high": gain + 0.1,
                    }
                }
            }
        content["rungs"].append(rung)
    content |= {
        "explained": [{"step": "images at random", "gain": 0.04, "share": 0.3}],
        "notes": [],
        "settings": {},
        "seconds": 3000.0,
        "provenance": PROVENANCE,
    }
    (folder / "ladder.json").write_text(json.dumps(content))
    return folder


def _write(
    folder: Path, settings: Config, rows: Predictions, record: Mapping[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = assess(rows, num_resamples=NUM_RESAMPLES)
    (folder / "config.json").write_text(settings.to_json())
    (folder / "predictions.csv").write_text(rows.to_csv())
    (folder / "evaluation.json").write_text(json.dumps(found, allow_nan=False))
    (folder / "results.json").write_text(json.dumps(record))


def _write_training(
    folder: Path, table: CellTable, rows: Predictions, *, seed: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record) + "\n" for record in history(seed=seed))
    (folder / "metrics.jsonl").write_text("".join(lines))
    sha256 = dict(zip(table.image_id.tolist(), table.sha256.tolist(), strict=True))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("image_id", "sha256", "patient", "group", "split"))
    columns = (rows.image_id, rows.patient, rows.group, rows.split)
    for name, patient, group, split in zip(*map(list, columns), strict=True):
        writer.writerow((name, sha256[name], patient, group, split))
    (folder / "partition.csv").write_text(text.getvalue())
