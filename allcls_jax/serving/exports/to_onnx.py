"""ONNX: the network as operators that every runtime has, uint8 images to P(ALL).

Preprocessing and calibration are part of the graph, and the batch may have any size.
The graph holds channels before rows and columns, as ONNX's convolutions want them;
features are flattened in the network's own order.
"""

from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, __version__
from allcls_jax.data import stain
from allcls_jax.data.cells import ALL, HEM
from allcls_jax.models import test_time_views, vgg
from allcls_jax.serving.exports.check import Format, Run, facts_as_text, host_params
from allcls_jax.serving.model import Model

# The first versions in which all operators used have today's meaning: the older, the
# more runtimes read them.
_OPSET = 13
_IR_VERSION = 7

_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # Products of the default are rounded to 10 bits.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


def build(model: Model) -> Any:
    """Returns an `onnx.ModelProto`, which ONNX's own checker has accepted.

    Its input is `images` (batch, s, s, 3) uint8 RGB; its outputs are `logits`
    (batch, 2) and `probability` (batch,), both float32. Labels, thresholds, image size
    and the model's hash are in its metadata.
    """
    import onnx
    from onnx import TensorProto, helper

    classifier = model.classifier
    side = classifier.image_size
    graph = _Graph()
    x = _preprocess(graph, model)
    if classifier.views > 1:
        x = _views(graph, x, classifier.views)
    x = _network(graph, x, classifier.model.layers, host_params(model))
    if classifier.views > 1:
        each = np.array([classifier.views, -1, vgg.NUM_CLASSES])
        x = graph.add("Reshape", x, graph.constant("of_each_view", each))
        graph.add("ReduceMean", x, axes=[0], keepdims=0)
    graph.name_last("logits")
    logits = {
        label: graph.add(
            "Gather", "logits", graph.constant(f"is_{label}", index), axis=1
        )
        for label, index in (("ALL", np.int64(ALL)), ("HEM", np.int64(HEM)))
    }
    difference = graph.add("Sub", logits["ALL"], logits["HEM"])
    temperature = graph.constant("temperature", np.float32(classifier.temperature))
    graph.add("Sigmoid", graph.add("Div", difference, temperature))
    graph.name_last("probability")

    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "allcls_jax",
            [
                helper.make_tensor_value_info(
                    "images", TensorProto.UINT8, ["batch", side, side, 3]
                )
            ],
            [
                helper.make_tensor_value_info(
                    "logits", TensorProto.FLOAT, ["batch", vgg.NUM_CLASSES]
                ),
                helper.make_tensor_value_info(
                    "probability", TensorProto.FLOAT, ["batch"]
                ),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="allcls_jax",
        producer_version=__version__,
        doc_string=DISCLAIMER,
    )
    helper.set_model_props(made, facts_as_text(model))
    onnx.checker.check_model(made, full_check=True)
    return made


def _write(model: Model, path: Path) -> None:
    path.write_bytes(build(model).SerializeToString(deterministic=True))


def _open(path: Path, platform: str) -> Run | None:
    import onnxruntime

    provider, settings = _PROVIDERS[platform]
    if provider not in onnxruntime.get_available_providers():
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        path, options, providers=[(provider, settings)]
    )
    # Where the provider is installed but finds no device, the CPU stands in for it.
    if session.get_providers()[0] != provider:
        return None

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probability = session.run(["logits", "probability"], {"images": images})
        return np.asarray(logits), np.asarray(probability)

    return run


def _version() -> str:
    import onnx  # noqa: F401
    import onnxruntime

    return onnxruntime.__version__


class _Graph:
    """Nodes in their order, each with one output."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """Adds an array to the graph; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(
        self, operator: str, *inputs: str, name: str = "", **attributes: Any
    ) -> str:
        """Adds a node; returns its output's name."""
        from onnx import helper

        name = name or f"{operator.lower()}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def name_last(self, name: str) -> None:
        """Gives the last node's output the name of one of the graph's outputs."""
        self.nodes[-1].output[0] = name


def _preprocess(graph: _Graph, model: Model) -> str:
    from onnx import TensorProto

    preprocessing = model.classifier.preprocessing
    x = graph.add("Cast", "images", to=TensorProto.FLOAT)
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    if preprocessing.normalise_stain:
        x = _normalise_stain(graph, x)
    if preprocessing.channel_order == "bgr":
        x = graph.add("Gather", x, graph.constant("bgr", np.array([2, 1, 0])), axis=1)
    for operator, name in (("Sub", "mean"), ("Mul", "scale")):
        values = np.array(getattr(preprocessing, name), np.float32)
        x = graph.add(operator, x, graph.constant(name, values.reshape(1, 3, 1, 1)))
    return x


def _normalise_stain(graph: _Graph, x: str) -> str:
    """Adds `stain.normalise`, of channels before rows and columns."""
    one, zero, white, least = (
        graph.constant(name, np.float32(value))
        for name, value in (
            ("one", 1),
            ("zero", 0),
            ("white", 255),
            ("least_spread", stain.LEAST_SPREAD),
        )
    )
    mean, spread = (
        graph.constant(f"standard_{name}", values.reshape(1, 3, 1, 1))
        for name, values in zip(
            ("mean", "spread"), np.array(stain.STANDARD, np.float32), strict=True
        )
    )
    # The version of the operators has these axes as an input of sums alone.
    plane = graph.constant("plane", np.array([2, 3]))

    def total(values: str) -> str:
        return graph.add("ReduceSum", values, plane)

    brightest = graph.add("ReduceMax", x, axes=[1])
    is_cell = graph.add("Greater", brightest, zero)
    cell = graph.add("Where", is_cell, one, zero)
    count = graph.add("Max", total(cell), one)
    share = graph.add("Div", graph.add("Clip", x, one, white), white)
    density = graph.add("Neg", graph.add("Log", share))
    sums = total(graph.add("Mul", cell, density))
    apart = graph.add("Sub", density, graph.add("Div", sums, count))
    squares = total(graph.add("Mul", graph.add("Mul", cell, apart), apart))
    own = graph.add("Sqrt", graph.add("Div", squares, count))
    factor = graph.add("Div", spread, graph.add("Max", own, least))
    density = graph.add("Add", graph.add("Mul", apart, factor), mean)
    density = graph.add("Max", density, zero)
    light = graph.add("Exp", graph.add("Neg", density))
    return graph.add("Mul", graph.add("Mul", light, white), cell)


def _views(graph: _Graph, x: str, views: int) -> str:
    """Adds flips and quarter turns of all images, one view behind the other."""
    test_time_views.refuse_other_angles(views, FORMAT.name)
    # From the end to the beginning, however long.
    last, before_first, back = (
        graph.constant(name, np.array([value]))
        for name, value in (("last", -1), ("before_first", -(2**31)), ("back", -1))
    )
    for name, axis in (("rows", 2), ("columns", 3)):
        reverse = graph.constant(name, np.array([axis]))
        reversed_too = graph.add("Slice", x, last, before_first, reverse, back)
        x = graph.add("Concat", x, reversed_too, axis=0)
    # With the diagonal these are all eight of a square.
    return graph.add("Concat", x, graph.add("Transpose", x, perm=[0, 1, 3, 2]), axis=0)


def _network(
    graph: _Graph,
    x: str,
    layers: tuple[vgg.Layer, ...],
    params: dict[str, dict[str, np.ndarray]],
) -> str:
    pooled: dict[str, str] = {}
    for layer in layers:
        name = layer.name
        match layer:
            case vgg.Conv():
                kernel = np.ascontiguousarray(
                    params[name]["kernel"].transpose(3, 2, 0, 1)
                )
                weights = graph.constant(f"{name}/kernel", kernel)
                bias = graph.constant(f"{name}/bias", params[name]["bias"])
                x = graph.add("Conv", x, weights, bias, name=name, pads=[1, 1, 1, 1])
                x = graph.add("Relu", x)
            case vgg.MaxPool():
                x = pooled[name] = graph.add(
                    "MaxPool", x, name=name, kernel_shape=[2, 2], strides=[2, 2]
                )
            case vgg.Flatten():
                x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
                x = graph.add("Flatten", x, name=name)
            case vgg.GlobalAveragePool():
                x = graph.add("GlobalAveragePool", x, name=name)
                x = graph.add("Flatten", x)
            case vgg.BlockAverages(_, poolings):
                means = [graph.add("GlobalAveragePool", pooled[at]) for at in poolings]
                x = graph.add("Flatten", graph.add("Concat", *means, axis=1))
                x = graph.add("Add", x, graph.constant(f"{name}/one", np.float32(1)))
                x = graph.add("Log", x, name=name)
            case vgg.Standardise():
                raise AssertionError("a model in use has it in its dense layer")
            case vgg.Dense(_, _, relu):
                weights = graph.constant(f"{name}/kernel", params[name]["kernel"])
                bias = graph.constant(f"{name}/bias", params[name]["bias"])
                x = graph.add("Gemm", x, weights, bias, name=name)
                x = graph.add("Relu", x) if relu else x
            case vgg.Dropout():
                pass  # drops nothing outside training
    return x


FORMAT = Format(
    name="onnx",
    suffix=".onnx",
    runtime="onnxruntime",
    version=_version,
    write=_write,
    platforms=tuple(_PROVIDERS),
    open=_open,
    load="onnxruntime.InferenceSession(FILE).run(['logits', 'probability'], "
    "{'images': images})  # images uint8; on a GPU of NVIDIA with use_tf32=0",
)
