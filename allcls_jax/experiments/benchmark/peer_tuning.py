"""A fine-tuning step by the peers: all parameters of the whole network, Adam."""

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from allcls_jax.experiments.benchmark.peer_networks import (
    Ready,
    Settings,
    fastest_mode,
    keras_model,
    load,
    set_up_torch,
    torch_stack,
)

_RATE = 1e-4


def _torch(settings: Settings, *, compiled: bool) -> Ready:
    torch: Any = importlib.import_module("torch")
    set_up_torch(torch, settings)
    weights, images = load(settings)
    gpu, last = settings["gpu"], torch.channels_last
    device = "cuda" if gpu else "cpu"
    stack = torch_stack(torch, settings["layers"], weights)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        width = torch.nn.Sequential(*stack)(inputs[:1]).numel()
    inputs = inputs.to(device, memory_format=last)
    label = torch.arange(len(images), device=device) % 2
    network = torch.nn.Sequential(
        *stack,
        torch.nn.Flatten(),
        torch.nn.Linear(width, 256),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(256, 2),
    ).to(device, memory_format=last)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE, fused=gpu)

    def run(function: Callable[[Any], Any], times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            with torch.autocast(device, torch.bfloat16, enabled=gpu):
                loss = torch.nn.functional.cross_entropy(function(inputs), label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / times

    function, note = network, "eager"
    if compiled:
        function, note = fastest_mode(torch, network, run)
    run(function, 2)
    times = settings["times"]
    return (
        {"note": f"{note}, channels_last"},
        lambda _: {"seconds": run(function, times)},
    )


def _keras(settings: Settings) -> Ready:
    keras: Any = importlib.import_module("keras")
    weights, images = load(settings)
    model = keras_model(keras, settings, weights, images.shape[1:], frozen=False)
    model.compile(
        keras.optimizers.Adam(_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    label = np.arange(len(images), dtype=np.int32) % 2

    def run(times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            model.train_on_batch(images, label)  # returns the loss as a number
        return (time.perf_counter() - begun) / times

    run(2)
    times = settings["times"]
    return (
        {"note": "train_on_batch, images in host memory"},
        lambda _: {"seconds": run(times)},
    )


TUNING: dict[str, Callable[[Settings], Ready]] = {
    "torch": lambda settings: _torch(settings, compiled=False),
    "torch compiled": lambda settings: _torch(settings, compiled=True),
    "Keras": _keras,
}
