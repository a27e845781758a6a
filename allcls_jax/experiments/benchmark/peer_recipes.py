"""The whole recipe, from packed images to a trained head, in a process of its own."""

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax.experiments.benchmark.peer_networks import (
    Ready,
    Settings,
    keras_model,
    load,
)


def _keras(settings: Settings) -> Ready:
    """Keras' `fit` with the frozen stack, as its guides for transfer learning say."""
    keras: Any = importlib.import_module("keras")
    weights, images = load(settings)
    label = np.load(settings["labels"], allow_pickle=False).astype(np.int32)
    model = keras_model(keras, settings, weights, images.shape[1:], frozen=True)
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    compiled_at: set[int] = set()

    def fit(batch: int, epochs: int, number: int) -> float:
        begun = time.perf_counter()
        model.fit(
            images[:number],
            label[:number],
            batch_size=batch,
            epochs=epochs,
            verbose=0,
        )
        return time.perf_counter() - begun

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        batch, number = min(request["batch"], len(images)), len(images)
        if not request.get("cold") and batch not in compiled_at:
            # A whole batch and, with its own program, what an epoch leaves over.
            fit(batch, 2, batch + number % batch)
            compiled_at.add(batch)
        return {"seconds": fit(batch, request["epochs"], number)}

    return {"note": "fit"}, answer


def _ours(settings: Settings) -> Ready:
    """This package's, for the time that a process takes from its start."""
    from allcls_jax.experiments.benchmark.recipe import open_recipe

    recipe = open_recipe(**settings["recipe"])

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        taken = recipe.run(
            Path(settings["cache"]), batch=request["batch"], epochs=request["epochs"]
        )
        return {"seconds": taken}

    return {"note": ""}, answer


RECIPES: dict[str, Callable[[Settings], Ready]] = {"Keras": _keras, "ours": _ours}
