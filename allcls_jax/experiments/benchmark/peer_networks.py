"""Forward passes of the convolutional stack by the peers, from one table of layers.

Each gets the same weights and the same images, ready where it computes (Keras: in host
memory), and tells some of its features, so that it is known to compute the same.
"""

import importlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from allcls_jax.experiments.benchmark.record import NOT_MEASURED
from allcls_jax.experiments.benchmark.workers import Unavailable

# Modes of torch.compile that are tried; the fastest is taken.
_MODES = ("default", "max-autotune")

# Values of the first image's features that are told.
_SAMPLES = 64

Settings = dict[str, Any]
Ready = tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]


def sample(features: Any) -> list[float]:
    """Returns some features of the first image, given (n, height, width, channels)."""
    flat = np.asarray(features)[0].astype(np.float64).ravel()
    return flat[:: max(len(flat) // _SAMPLES, 1)].tolist()


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keras_stack(layers: Sequence[Any]) -> list[Any]:
    """Returns Keras' layers of a table, without their weights."""
    keras: Any = importlib.import_module("keras")
    made = []
    for kind, name, channels in layers:
        if kind == "pool":
            made.append(keras.layers.MaxPooling2D(2, name=name))
            continue
        made.append(
            keras.layers.Conv2D(
                channels, 3, padding="same", activation="relu", name=name
            )
        )
    return made


def set_keras_weights(layers: Sequence[Any], weights: dict[str, np.ndarray]) -> None:
    """Gives built layers the weights of their names."""
    for layer in layers:
        if f"{layer.name}/kernel" in weights:
            names = (f"{layer.name}/kernel", f"{layer.name}/bias")
            layer.set_weights([weights[name] for name in names])


def set_up_torch(torch: Any, settings: Settings) -> None:
    """Gives torch all cores, and checks that it has a GPU where one is asked for."""
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    if settings["gpu"] and not torch.cuda.is_available():
        raise Unavailable("installed without CUDA")


def torch_stack(
    torch: Any, layers: Sequence[Any], weights: dict[str, np.ndarray]
) -> list[Any]:
    """Returns torch's layers of a table, with their weights."""
    made = []
    for kind, name, channels in layers:
        if kind == "pool":
            made.append(torch.nn.MaxPool2d(2))
            continue
        kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
        conv = torch.nn.Conv2d(kernel.shape[2], channels, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
            conv.bias.copy_(torch.from_numpy(bias))
        made += [conv, torch.nn.ReLU(inplace=True)]
    return made


def keras_model(
    keras: Any,
    settings: Settings,
    weights: dict[str, np.ndarray],
    shape: tuple[int, ...],
    *,
    frozen: bool,
) -> Any:
    """Returns the whole network, which takes uint8 images.

    Images stay uint8 until the device has them: preprocessing is a part of the model,
    which is kinder to Keras than the floats that its guides send.
    """
    if settings["gpu"]:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    mean = np.array(settings["mean"], np.float32)

    def preprocess(x: Any) -> Any:
        return keras.ops.cast(x, "float32")[..., ::-1] - mean

    stack = keras_stack(settings["layers"])
    for layer in stack:
        layer.trainable = not frozen
    value = source = keras.Input(shape, dtype="uint8")
    for layer in [
        keras.layers.Lambda(preprocess, output_shape=shape),
        *stack,
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(2, dtype="float32"),
    ]:
        value = layer(value)
    set_keras_weights(stack, weights)
    return keras.Model(source, value)


def fastest_mode(
    torch: Any, network: Any, run: Callable[[Callable[[Any], Any], int], float]
) -> tuple[Any, str]:
    """Returns the network compiled in the fastest mode, and the mode."""
    found, reason = [], "no mode"
    for mode in _MODES:
        try:
            function = torch.compile(network, mode=mode)
            run(function, 2)
            found.append((min(run(function, 1) for _ in range(3)), mode, function))
        except Exception as error:  # compilers fail in any way, one mode or all
            reason = str(error).strip().partition("\n")[0]
    if not found:
        raise Unavailable(f"cannot compile: {reason}"[:300])
    _, mode, function = min(found, key=lambda item: item[0])
    return function, f"compiled, mode {mode}"


def _torch(settings: Settings, *, compiled: bool) -> Ready:
    torch: Any = importlib.import_module("torch")
    set_up_torch(torch, settings)
    gpu = settings["gpu"]
    weights, images = load(settings)
    place = {
        "device": "cuda" if gpu else "cpu",
        "dtype": getattr(torch, settings["dtype"]),
    }
    made = torch_stack(torch, settings["layers"], weights)
    last = torch.channels_last
    network = torch.nn.Sequential(*made).eval().to(**place, memory_format=last)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    inputs = inputs.to(**place, memory_format=last)

    def run(function: Callable[[Any], Any], times: int) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            for _ in range(times):
                function(inputs)
        if gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / times

    function, note = network, "eager"
    if compiled:
        function, note = fastest_mode(torch, network, run)
    run(function, 2)
    with torch.inference_mode():
        features = function(inputs).float().cpu().numpy().transpose(0, 2, 3, 1)
    times = settings["times"]
    return (
        {"sample": sample(features), "note": f"{note}, channels_last"},
        lambda _: {"seconds": run(function, times)},
    )


def _onnxruntime(settings: Settings) -> Ready:
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    if settings["gpu"]:
        raise Unavailable(NOT_MEASURED)
    weights, images = load(settings)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = runtime.InferenceSession(
        _onnx_model(onnx, settings["layers"], weights),
        options,
        providers=["CPUExecutionProvider"],
    )
    inputs = {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}

    def run(times: int = 1) -> Any:
        found = None
        for _ in range(times):
            (found,) = session.run(None, inputs)
        return found

    features = run(2).transpose(0, 2, 3, 1)
    times = settings["times"]
    return (
        {"sample": sample(features), "note": ""},
        lambda _: timed(lambda: run(times), times),
    )


def _onnx_model(
    onnx: Any, layers: Sequence[Any], weights: dict[str, np.ndarray]
) -> bytes:
    """Returns the stack as a serialised graph; channels come first, as in ONNX."""
    nodes, constants = [], []
    names = (f"x{number}" for number in itertools.count())
    value = "images"
    for kind, name, _ in layers:
        out = next(names)
        if kind == "pool":
            pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
            nodes.append(onnx.helper.make_node("MaxPool", [value], [out], **pool))
            value = out
            continue
        kernel = weights[f"{name}/kernel"].transpose(3, 2, 0, 1)
        for part, array in (("kernel", kernel), ("bias", weights[f"{name}/bias"])):
            array = np.ascontiguousarray(array)
            constants.append(onnx.numpy_helper.from_array(array, f"{name}/{part}"))
        taken = [value, f"{name}/kernel", f"{name}/bias"]
        conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes.append(onnx.helper.make_node("Conv", taken, [out], **conv))
        value = next(names)
        nodes.append(onnx.helper.make_node("Relu", [out], [value]))
    shape = ["n", 3, "height", "width"]
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "stack",
        [onnx.helper.make_tensor_value_info("images", float32, shape)],
        [onnx.helper.make_tensor_value_info(value, float32, None)],
        constants,
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return model.SerializeToString()


def _keras(settings: Settings) -> Ready:
    keras: Any = importlib.import_module("keras")
    if settings["dtype"] == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    weights, images = load(settings)
    layers = keras_stack(settings["layers"])
    network = keras.Sequential([keras.Input(images.shape[1:]), *layers])
    set_keras_weights(layers, weights)
    batch, times = len(images), settings["times"]
    several = np.concatenate([images] * times)

    def run() -> Any:
        return network.predict(several, batch_size=batch, verbose=0)

    run()
    features = np.asarray(run()[:1], np.float32)
    return (
        {"sample": sample(features), "note": "predict, images in host memory"},
        lambda _: timed(run, times),
    )


def timed(work: Callable[[], Any], times: int = 1) -> dict[str, float]:
    """Does a piece of work, and returns the seconds of each of so many parts of it."""
    begun = time.perf_counter()
    work()
    return {"seconds": (time.perf_counter() - begun) / times}


def load(settings: Settings) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns weights by name, and images as they were saved."""
    with np.load(settings["weights"], allow_pickle=False) as file:
        weights = dict(file)
    return weights, np.load(settings["images"], allow_pickle=False)


FORWARD: dict[str, Callable[[Settings], Ready]] = {
    "torch": lambda settings: _torch(settings, compiled=False),
    "torch compiled": lambda settings: _torch(settings, compiled=True),
    "ONNX Runtime": _onnxruntime,
    "Keras": _keras,
}
