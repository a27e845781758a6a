"""Writes the model directory of a finished run."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from allcls_jax import DISCLAIMER, __version__, config_files, terminal
from allcls_jax.config import Config, DataSource, ExperimentKind, SyntheticConfig
from allcls_jax.data import (
    cnmc,
    domain,
    partition_file,
    pipeline,
    synthetic,
    transforms,
)
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import calibration, fitting, predictions
from allcls_jax.evaluation.report import model_card, record
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.model_directory import (
    CARD_FILE,
    CHECK_FILE,
    FOLDER,
    FORMAT,
    LABELS,
    NUM_CHECK_CELLS,
    QUANTILES,
    RECORD_FILE,
    WEIGHTS_FILE,
    CheckCells,
    cut,
)
from allcls_jax.experiments.setup import Data, open_data
from allcls_jax.experiments.trained_network import restore
from allcls_jax.models import parts, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.training import inputs, sharding
from allcls_jax.training.network import Network, build

# Training images whose colours are measured; their areas are all known.
_COLOURED = 1000


def leave(workdir: Path, config: Config, network: Network, data: Data) -> Path:
    """Writes the model directory of a finished run into its folder.

    Args:
      workdir: of the run; has its checkpoint, `partition.csv`, `predictions.csv` and
        `results.json`.
      config: resolved.
      network: of the run, with its frozen weights in place.
      data: the run's cells.

    Returns:
      The model directory, which appears whole or not at all.

    Raises:
      InputError: if something of the run is missing or is not its own.
    """
    params, step, _ = restore(workdir, network)
    out = workdir / FOLDER

    def write() -> None:
        # A folder of its own: several processes may want the same model at once.
        with tempfile.TemporaryDirectory(dir=workdir, prefix=f".{FOLDER}.") as folder:
            beside = Path(folder) / FOLDER
            # A zip has no place for links, and a model is to be copied: files only.
            beside.mkdir()
            _write(beside, workdir, config, network, params, step, data)
            if _same(beside, out):
                return
            if out.exists():
                out.replace(Path(folder) / "former")
            beside.replace(out)

    sharding.on_first_process(write)
    return out


def leave_from_checkpoint(workdir: Path) -> Path:
    """Writes the model directory of a run that has none, such as a fold's.

    Raises:
      InputError: if it is no finished single run, or its cells or the pretrained
        weights are not where they were.
    """
    config = config_files.read_run(workdir / folder.CONFIG_FILE)
    if (
        config.experiment.kind is not ExperimentKind.RUN
        or not (workdir / outputs.RESULTS_FILE).exists()
    ):
        raise InputError(
            f"{workdir}: holds no finished single run; give the folder of one, such as "
            "that of a fold"
        )
    terminal.say(f"{workdir}: no model directory yet; it is made from the checkpoint")
    data = open_data(config)
    network = build(config, data.cells.source, cache_dir=inputs.cache_dir(config))
    return leave(workdir, config, network, data)


def _same(one: Path, other: Path) -> bool:
    """Returns whether two model directories hold the same model."""
    if not (other / RECORD_FILE).exists():
        return False
    return (one / RECORD_FILE).read_bytes() == (other / RECORD_FILE).read_bytes()


def _write(
    out: Path,
    workdir: Path,
    config: Config,
    network: Network,
    params: vgg.Params,
    step: int,
    data: Data,
) -> None:
    results = config_files.load(workdir / outputs.RESULTS_FILE)
    table = predictions.read(workdir / outputs.PREDICTIONS_FILE)
    fits, warnings = _calibration(table)
    model = {
        "name": str(config.model.name),
        "head": str(config.model.head),
        "blocks": config.model.blocks,
        "dtype": str(config.model.dtype),
        "image_size": config.data.image_size,
        "pack_size": config.pack_size,
        "crop": config.data.crop,
        "views": config.evaluation.views,
        # Larger pictures are cut to their centre first, where training cut them.
        "max_side": cnmc.SIDE if config.data.source is DataSource.CNMC else None,
    }
    network_in_use, params = parts.folded(network.model, params)
    arrays = {
        name: np.asarray(array) for name, array in vgg.flatten_params(params).items()
    }
    plain = Classifier(
        vgg.VGG(network_in_use.layers),
        params,
        network.preprocessing,
        config.data.image_size,
        fits["temperature"],
        config.evaluation.views,
    )
    check = _check_cells(plain, model)
    files = {
        WEIGHTS_FILE: safetensors.numpy.save(
            arrays,
            # One entry: safetensors puts several in any order, and bytes must not vary.
            {"model.json": json.dumps(model)},
        ),
        CHECK_FILE: safetensors.numpy.save(dataclasses.asdict(check)),
        CARD_FILE: model_card.render(record.read(workdir)).encode(),
    }
    own = {
        "format": FORMAT,
        "package": f"allcls_jax {__version__}",
        "disclaimer": DISCLAIMER,
        "notes": [*results["notes"], *warnings],
        "labels": LABELS,
        "model": model,
        "preprocessing": dataclasses.asdict(network.preprocessing),
        **fits,
        "domain": _domain(workdir, config, data).to_json(),
        "training": {
            "step": step,
            "data": results["data"],
            "weights": results["weights"],
            "parameters": results["parameters"],
            "test": results["test"],
            "provenance": results["provenance"],
        },
        "config": dataclasses.asdict(config),
        "files": {
            name: hashlib.sha256(content).hexdigest() for name, content in files.items()
        },
    }
    files[RECORD_FILE] = (json.dumps(own, indent=2) + "\n").encode()
    for name, content in files.items():
        (out / name).write_bytes(content)


def _calibration(table: predictions.Predictions) -> tuple[dict[str, Any], list[str]]:
    """Returns what a run's validation images say of its probabilities, and warnings."""
    fits = fitting.fit(table)
    (found,) = fits.temperature.values()
    warnings = []
    if found.value is None:
        warnings.append(f"probabilities are not calibrated: {found.reason}")
    temperature = found.value or 1.0
    validation = table.of(Split.VALIDATION)
    calibrated = calibration.calibrate(validation.probability, temperature)
    thresholds = {
        name: float(calibration.calibrate(np.array(fitted.value), temperature))
        for name, of_runs in fits.thresholds.items()
        for fitted in of_runs.values()
        if fitted.value is not None
    }
    return {
        "temperature": temperature,
        "thresholds": thresholds,
        "validation": np.quantile(calibrated, np.linspace(0, 1, QUANTILES)).tolist(),
    }, warnings


def _domain(workdir: Path, config: Config, data: Data) -> domain.Domain:
    """Returns the ranges of the cells that a run was trained on."""
    trained = {
        row["image_id"]
        for row in partition_file.read(workdir)
        if row["split"] == Split.TRAIN
    }
    # Copies are turned originals: the same areas and colours.
    rows = np.flatnonzero(np.isin(data.cells.table.image_id, [*trained]))
    images = pipeline.PackedImages(data.cells, None, config.data.image_size)
    some = rows[:: max(1, len(rows) // _COLOURED)]
    area = data.cells.table.area[rows]
    return domain.learn((images[int(row)] for row in some), area)


def _check_cells(plain: Classifier, model: Mapping[str, Any]) -> CheckCells:
    """Draws cells, and computes what the model says of them."""
    drawing = SyntheticConfig(
        num_images=NUM_CHECK_CELLS, num_patients=NUM_CHECK_CELLS // 2, seed=1
    )
    images = np.stack(
        [
            cut(
                transforms.encode_png(synthetic.draw(drawing, index)),
                name="check cell",
                model=model,
            )[0]
            for index in range(NUM_CHECK_CELLS)
        ]
    )

    # Accelerators would otherwise round float32 products.
    with jax.default_matmul_precision("float32"):
        logits, probability = jax.jit(plain.plain)(jnp.asarray(images), plain.params)
    return CheckCells(images, np.asarray(logits), np.asarray(probability))
