"""The converter of weight files, and its comparison of our forward pass with Keras'.

Nothing is written unless all that was asked for has succeeded.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax import terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.config import ModelName
from allcls_jax.errors import InputError
from allcls_jax.models import pretrained, vgg
from allcls_jax.models.preprocessing import CAFFE
from allcls_jax.models.weight_files import WeightFile, read_weights, write_safetensors

TOLERANCE = 1e-5  # of the relative difference from Keras, in float32

_NUM_IMAGES = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Converts a weight file as the command line says.

    Args:
      argv: arguments without the program's name; None: those of this process.

    Returns:
      0; 1 if the comparison with Keras failed; 2 for what the user can mend. In both
      other cases an `error: …` stands on standard error and nothing was written.
    """
    options = parser().parse_args(argv)
    return run(
        lambda: _convert(
            options.source,
            options.out,
            image_size=options.image_size if options.verify else None,
        )
    )


def forward(weights: WeightFile, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of our network in float32.

    Args:
      weights: with or without the ImageNet classifier.
      images: (n, height, width, 3) uint8, RGB; square, of 224 pixels if the
        classifier is there.

    Returns:
      `block1_pool` … `block5_pool`, and `logits` (n, 1000) with the classifier.
    """
    top = vgg.imagenet_top() if weights.has_top else ()
    model = vgg.VGG(vgg.conv_stack(weights.variant) + top)
    shapes = vgg.param_shapes(model, images.shape[1])
    params = pretrained.merge(shapes, weights.arrays)

    @jax.jit
    def apply(params: vgg.Params, images: jax.Array) -> dict[str, jax.Array]:
        output: Any = model.apply({"params": params}, weights.preprocessing(images))
        return output[1]

    # Accelerators would otherwise round float32 products.
    with jax.default_matmul_precision("float32"):
        named = apply(params, jnp.asarray(images))
    return {name: np.asarray(named[name]) for name in _outputs(weights)}


def keras_forward(
    weights: WeightFile, images: np.ndarray, *, source: Path | None = None
) -> tuple[dict[str, np.ndarray], bool]:
    """Returns the same outputs as `forward`, computed by Keras Applications.

    Args:
      weights: of a network that Keras has.
      images: as for `forward`.
      source: the file that `weights` were read from; Keras reads it by itself if it
        can, else it is given the arrays.

    Returns:
      The outputs, and whether Keras has read the file by itself.
    """
    keras = import_keras()
    applications = keras.applications
    builder = {
        ModelName.VGG16: applications.VGG16,
        ModelName.VGG19: applications.VGG19,
    }[weights.variant]
    model = builder(
        weights=None,
        include_top=weights.has_top,
        input_shape=images.shape[1:],
        classifier_activation=None,
    )
    read = source is not None and _keras_reads(model, source)
    if not read:
        for layer in model.layers:
            if layer.weights:
                names = (f"{layer.name}/kernel", f"{layer.name}/bias")
                layer.set_weights([weights.arrays[name] for name in names])
    if weights.preprocessing == CAFFE:
        # Works in place.
        inputs = applications.vgg16.preprocess_input(images.astype(np.float32))
    else:
        inputs = np.asarray(weights.preprocessing(jnp.asarray(images)))
    layers = {name: name for name in _outputs(weights)} | {"logits": "predictions"}
    tensors = {name: model.get_layer(layers[name]).output for name in _outputs(weights)}
    with jax.default_matmul_precision("float32"):
        named = keras.Model(model.inputs, tensors).predict(inputs, verbose=0)
    return {name: np.asarray(value) for name, value in named.items()}, read


def relative_errors(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns max |ours - theirs| / max |theirs| of each output."""
    errors = {}
    for name, value in theirs.items():
        scale = np.max(np.abs(value))
        errors[name] = float(np.max(np.abs(ours[name] - value)) / (scale or 1.0))
    return errors


def parser() -> Parser:
    """Returns the reader of its arguments."""
    parser = Parser(
        "convert",
        "Reads VGG16 or VGG19 weights of Keras, torchvision or timm and writes them "
        "as safetensors that --config.model.weights takes.",
        "allcls convert vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5 "
        "--out vgg19.safetensors --verify",
    )
    parser.add_argument(
        "source", type=Path, help="weight file; its layout is found out"
    )
    parser.add_argument("--out", type=Path, required=True, help="FILE.safetensors")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare every block's output with Keras 3 first, on "
        f"{_NUM_IMAGES} seeded images; more than {TOLERANCE:g} is an error",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="of the seeded images, a multiple of 32; 224 with a classifier",
    )
    return parser


def _convert(source: Path, out: Path, *, image_size: int | None) -> int:
    weights = read_weights(source)
    _check_out(out, source)
    facts = {
        "read": source,
        "first file": weights.source_name,
        "its sha256": weights.source_sha256,
        "network": weights.variant.upper(),
        "classifier": "ImageNet" if weights.has_top else "none",
        "left out": ", ".join(weights.ignored) or "nothing",
        "channels": weights.preprocessing.channel_order,
        "arrays": len(weights.arrays),
        "parameters": f"{weights.num_parameters:,}",
    }
    for fact, value in facts.items():
        terminal.say(f"{fact:<12}{value}")
    if image_size is not None and not _verify(weights, source, image_size):
        return 1
    write_safetensors(weights, out)
    content = out.read_bytes()
    terminal.say(f"{'wrote':<12}{out}, {len(content):,} bytes")
    terminal.say(f"{'sha256':<12}{hashlib.sha256(content).hexdigest()}")
    return 0


def _check_out(out: Path, source: Path) -> None:
    """Finds out what is wrong with the target before minutes are spent."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: must end in .safetensors")
    try:
        if out.is_dir() or not out.parent.is_dir():
            raise InputError(f"--out {out}: must name a file in a folder that exists")
        if out.exists() and out.samefile(source.expanduser()):
            raise InputError(f"--out {out}: is the source; name another file")
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be used ({error.strerror}); name another folder"
        ) from error


def _verify(weights: WeightFile, source: Path, image_size: int) -> bool:
    """Shows how far we are from Keras; returns whether that is near enough."""
    if importlib.util.find_spec("keras") is None:
        raise InputError(
            "--verify: Keras is not installed; pip install keras, or leave out --verify"
        )
    if weights.variant == ModelName.TINY:
        raise InputError("--verify: Keras has no such network; leave out --verify")
    if image_size < 32 or image_size % 32 or (weights.has_top and image_size != 224):
        rule = "224 with a classifier" if weights.has_top else "a multiple of 32"
        raise InputError(f"--image-size {image_size}: must be {rule}")
    shape = (_NUM_IMAGES, image_size, image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ours = forward(weights, images)
    theirs, read = keras_forward(weights, images, source=source)
    errors = relative_errors(ours, theirs)
    version = import_keras().__version__
    how = "which read the file itself" if read else "which was given these arrays"
    terminal.show_table(
        f"Largest relative difference from Keras {version}, {how}",
        ("output", "shape", "difference"),
        [
            (name, " × ".join(map(str, ours[name].shape[1:])), f"{error:.1e}")
            for name, error in errors.items()
        ],
    )
    # Written so that a difference that is not a number fails too.
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        sys.stderr.write(
            f"error: {', '.join(wrong)} differ from Keras by more than {TOLERANCE:g}; "
            "nothing was written\n"
        )
    return not wrong


def _outputs(weights: WeightFile) -> list[str]:
    blocks = range(1, len(vgg.BLOCKS[weights.variant]) + 1)
    return [f"block{i}_pool" for i in blocks] + ["logits"] * weights.has_top


def import_keras() -> Any:
    """Returns Keras, on the JAX backend unless it was imported before."""
    if "keras" not in sys.modules:
        # Its default is TensorFlow, and it reads this once, when it is imported.
        os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return keras


def _keras_reads(model: Any, source: Path) -> bool:
    """Lets Keras read the file by itself; returns whether it could."""
    if source.suffix not in (".h5", ".hdf5", ".keras"):
        return False
    try:
        model.load_weights(source)
    except Exception:  # Keras has no common type for "this is another model's file"
        return False
    return True
