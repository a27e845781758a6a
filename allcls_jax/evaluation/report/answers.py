"""Sentences about a run for its model card and checklist, from its record alone.

What the record does not hold is "not available", with the reason.
"""

from collections.abc import Callable, Mapping

from allcls_jax import DISCLAIMER, config_files, terminal
from allcls_jax.evaluation.report import answers_training
from allcls_jax.evaluation.report.numbers import (
    SPLITS,
    count,
    label,
    number,
    ordered,
    percent,
    reasons,
    span,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Facts
from allcls_jax.evaluation.report.record import (
    CROSS_VALIDATION,
    LADDER,
    RUN,
    Folder,
    Missing,
    damaged,
)
from allcls_jax.evaluation.report.tables import (
    KINDS,
    code_version,
    device_name,
    seeds,
    what_was_run,
)

NOT_AVAILABLE = "not available"

_MAIN = ("auroc", "weighted_f1", "balanced_accuracy", "sensitivity", "specificity")


def answers(folder: Folder) -> dict[str, str]:
    """Returns a sentence for each topic of `_TOPICS`.

    Args:
      folder: of a run or a cross-validation; of a ladder its first honest rung speaks.
    """
    run = folder.detail or folder
    found = {"disclaimer": DISCLAIMER}
    for topic, tell in _TOPICS.items():
        try:
            with damaged(run.path):
                if run.kind == LADDER:
                    raise Missing("no rung without a leak has finished")
                found[topic] = tell(run)
        except Missing as missing:
            found[topic] = f"{NOT_AVAILABLE} ({missing})"
    return found


def _network(folder: Folder) -> str:
    model = folder.config()["model"]
    numbers = folder.results.get("parameters") or {}
    sizes = ", ".join(f"{count(value)} {name}" for name, value in numbers.items())
    size = folder.config()["data"]["image_size"]
    return (
        f"Convolutional network {model['name']}, head {model['head']}, dropout "
        f"{model['dropout']}; input {size} × {size} × 3, output two logits, of which "
        f"P(ALL); parameters: {sizes or NOT_AVAILABLE}"
    )


def _layers(folder: Folder) -> str:
    rows = folder.result("layers")
    return f"{len(rows)} layers with output and parameters: table in report.html"


def _weights(folder: Folder) -> str:
    weights = folder.result("weights")
    if weights.get("source") == "random":
        return "Backbone drawn at random from the seed; head likewise"
    return (
        f"Backbone: {weights.get('source')}, file {weights.get('file')}, sha256 "
        f"{weights.get('sha256')}; head drawn at random from the seed"
    )


def _data(folder: Folder) -> str:
    data = folder.result("data")
    counts = (data.get("counts") or {}).get("all") or {}
    size = ", ".join(
        f"{count(counts[key])} {key}"
        for key in ("images", "patients", "ALL", "HEM")
        if key in counts
    )
    return (
        f"Source {data.get('source')}; {size or 'counts ' + NOT_AVAILABLE}; "
        f"fingerprint {data.get('fingerprint')}"
    )


def _subset(folder: Folder) -> str:
    data = folder.config()["data"]
    limit = data.get("limit")
    which = (
        "All labelled images"
        if limit is None
        else f"{count(limit)} labelled images, every patient keeping its share"
    )
    test = folder.result("data").get("test_set")
    return f"{which}; test set: {test}" if test else which


def _preprocessing(folder: Folder) -> str:
    data = folder.config()["data"]
    size = data["image_size"]
    crop = data.get("crop")
    cut = "the whole image" if crop is None else f"the centre {crop} × {crop} pixels"
    given = folder.result("preprocessing")
    order, mean = str(given["channel_order"]).upper(), given["mean"]
    scaled = set(given["scale"]) != {1.0}
    stain = "optical density of each cell that of a standard cell; "
    return (
        f"Background set to 0; {cut} resized to {size} × {size} pixels; "
        + (stain if given.get("normalise_stain") else "")
        + f"channels {order}, less "
        + f"{', '.join(f'{value:.3f}' for value in mean)} grey levels"
        + (", each scaled by its own factor" if scaled else "")
    )


def _missing_data(folder: Folder) -> str:
    policy = folder.config()["data"].get("on_bad_image")
    skipped = folder.result("data").get("skipped")
    rule = (
        "left out" if policy == "skip" else "not accepted: the run would have stopped"
    )
    return (
        f"Images that cannot be read: {rule}; left out: {count(skipped)}. Images "
        "without a label are not used"
    )


def _split(folder: Folder) -> str:
    data = folder.config()["data"]
    kind = str(folder.result("data").get("split"))
    share = data.get("validation")
    return (
        f"Split: {SPLITS.get(kind, kind)}; validation: {percent(share)} of the "
        f"training patients; seed {seeds(folder)}; partition.csv names the side of "
        "every image, the partition table in report.html counts them"
    )


def _disjoint(folder: Folder) -> str:
    leaky = folder.result("data").get("leaky")
    if leaky is None:
        raise Missing("results.json holds no data.leaky")
    if leaky:
        return "Image: patients stand on both sides, so that the figures flatter"
    groups = folder.config()["data"].get("groups")
    return (
        "Group of patients that share cells"
        if groups
        else "Patient (no groups of patients that share cells were given)"
    )


def _partition(folder: Folder) -> str:
    data = folder.result("data")
    counts = (data.get("counts") or {}).get("all") or {}
    found = [
        f"{use}: {count(row.get('images'))} images of {count(row.get('patients'))} "
        "patients"
        for use, row in [("all", counts)]
        + (
            [(row["use"], row) for row in data.get("partition") or []]
            if folder.kind == RUN
            else []
        )
        if row
    ]
    if not found:
        raise Missing("results.json holds no data.counts and no data.partition")
    return "; ".join(found)


def _software(folder: Folder) -> str:
    record = folder.result("provenance")
    versions = record.get("versions") or {}
    return f"{code_version(record.get('git'), versions)}; " + ", ".join(
        f"{name} {version}" for name, version in versions.items() if version
    )


def _hardware(folder: Folder) -> str:
    record = folder.result("provenance")
    seconds = folder.results.get("seconds")
    took = "" if seconds is None else f"; {terminal.duration(float(seconds))}"
    return device_name(record.get("device") or {}) + took


def _metrics(folder: Folder) -> str:
    settings = folder.evaluation("settings")
    names = [label(name) for name in ordered(folder.evaluation("figures", "by_image"))]
    return (
        f"{', '.join(names)}; by image, with every patient weighted equally, and by "
        f"patient; PPV and NPV at a prevalence of {settings['prevalence']:g}; "
        "threshold 0.5 unless another is named"
    )


def _uncertainty(folder: Folder) -> str:
    settings = folder.evaluation("settings")
    return (
        f"{percent(settings['confidence'])} intervals from "
        f"{count(settings['num_resamples'])} bootstrap resamples of groups of "
        "patients, stratified by class"
    )


def _performance(folder: Folder) -> str:
    entries = folder.evaluation("figures", "by_image")
    counts = folder.evaluation("counts")
    figures = "; ".join(
        f"{label(name)} {with_interval(entries[name])}"
        for name in _MAIN
        if name in entries
    )
    return " ".join(
        [
            f"{count(counts['images'])} test images of {count(counts['patients'])} "
            f"patients: {figures}.",
            *reasons({name: entries[name] for name in _MAIN if name in entries}),
        ]
    )


def _partitions_performance(folder: Folder) -> str:
    found = []
    for use in ("validation", "test"):
        entries = folder.results.get(use)
        if isinstance(entries, Mapping):
            shown = (f"{label(n)} {number(entries[n])}" for n in _MAIN if n in entries)
            found.append(f"{use}: {', '.join(shown)}")
    if not found:
        raise Missing("results.json holds no figures by part; test only, see above")
    return "; ".join(found) + ". Training: loss and accuracy by epoch in metrics.jsonl"


def _robustness(folder: Folder) -> str:
    rows = folder.evaluation("subgroups")
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    found = [f"Subgroups by {', '.join(kinds)}"]
    if folder.kind == CROSS_VALIDATION:
        found.append("spread over folds and seeds")
    for name, get in (
        ("baselines", folder.baselines),
        ("ladder of leaks", folder.ladder),
    ):
        try:
            get()
            found.append(name)
        except Missing:
            continue
    return "; ".join(found) + ": tables in report.html"


def _failures(folder: Folder) -> str:
    rows = folder.evaluation().get("mistakes")
    if rows is None:
        raise Missing("evaluation.json holds no mistakes")
    patients = folder.evaluation("patients")
    worst = sorted(patients, key=lambda row: row["accuracy"])[:3]
    return (
        f"The {len(rows)} most confidently wrong images are listed in report.html; the "
        "patients with the lowest accuracy are "
        + ", ".join(f"{row['patient']} ({number(row['accuracy'], 2)})" for row in worst)
    )


def _limitations(folder: Folder) -> str:
    found = [*folder.notes, *map(str, folder.evaluation().get("warnings") or [])]
    return "; ".join(found) if found else "The record holds no note and no warning"


def _calibration(folder: Folder) -> str:
    content = folder.evaluation("calibration")
    values = [
        row["value"] for row in content["temperature"] if row["value"] is not None
    ]
    return (
        f"Temperature fitted on validation patients: {span(values)}"
        if values
        else "No temperature could be fitted"
    )


def _provenance(folder: Folder) -> str:
    record: Facts = what_was_run(folder)
    kept = ("Folder", "Finished (UTC)", "Took", "Seed", "Code", "Device")
    return "; ".join(f"{term}: {value}" for term, value in record.rows if term in kept)


def _command(folder: Folder) -> str:
    return str(folder.result("provenance").get("command") or NOT_AVAILABLE)


def _settings(folder: Folder) -> str:
    return f"{len(config_files.flatten(folder.config()))} settings in config.json"


def _kind(folder: Folder) -> str:
    return KINDS[folder.kind]


def _date(folder: Folder) -> str:
    return str(folder.result("provenance").get("utc") or NOT_AVAILABLE)


def _subjects(folder: Folder) -> str:
    if folder.result("data").get("source") == "synthetic":
        return "The cells are drawn; there are no patients behind them"
    return (
        "The images are of people. Consent and review by an ethics committee: "
        f"{NOT_AVAILABLE} in the record; ask the source of the data"
    )


def _design(folder: Folder) -> str:
    if folder.result("data").get("source") == "synthetic":
        return "Neither: synthetic cells, no study of patients"
    return "Retrospective: images that existed before are evaluated"


_TOPICS: dict[str, Callable[[Folder], str]] = {
    "kind": _kind,
    "date": _date,
    "network": _network,
    "layers": _layers,
    "weights": _weights,
    "data": _data,
    "design": _design,
    "subjects": _subjects,
    "subset": _subset,
    "preprocessing": _preprocessing,
    "missing_data": _missing_data,
    "split": _split,
    "disjoint": _disjoint,
    "partition": _partition,
    "training": answers_training.training,
    "selection": answers_training.selection,
    "ensembling": answers_training.ensembling,
    "software": _software,
    "hardware": _hardware,
    "metrics": _metrics,
    "uncertainty": _uncertainty,
    "performance": _performance,
    "by_part": _partitions_performance,
    "robustness": _robustness,
    "failures": _failures,
    "limitations": _limitations,
    "calibration": _calibration,
    "provenance": _provenance,
    "command": _command,
    "settings": _settings,
}
