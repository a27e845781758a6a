"""A cell is the same cell in every image format."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from allcls_jax.config import HeadKind, ModelName, SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.models import pretrained, vgg
from allcls_jax.models.preprocessing import CAFFE


def encode(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    options = {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def probabilities(params, layers, images: np.ndarray) -> np.ndarray:
    model = vgg.VGG(layers)
    logits, _ = jax.jit(lambda p, x: model.apply({"params": p}, CAFFE(x)))(
        params, images
    )
    # A head that has not been trained gives logits in the hundreds: bring them to the
    # size of trained ones, or every probability were 0 or 1 and nothing were tested.
    logits = np.asarray(logits, np.float64)
    margin = logits[:, 1] - logits[:, 0]
    return 1 / (1 + np.exp(-2 * (margin - np.median(margin)) / margin.std()))


def check(cells: list[np.ndarray], params, layers, size: int) -> None:
    found = {}
    for kind in ("BMP", "PNG", "TIFF", "JPEG"):
        prepared = [
            transforms.prepare(
                encode(cell, kind), name=kind, max_side=450, crop=None, size=size
            )[0]
            for cell in cells
        ]
        found[kind] = probabilities(params, layers, np.stack(prepared))
    assert np.ptp(found["BMP"]) > 0.5, "the cells differ"
    assert np.array_equal(found["PNG"], found["BMP"])
    assert np.array_equal(found["TIFF"], found["BMP"])
    difference = np.abs(found["JPEG"] - found["BMP"])
    assert difference.mean() < 0.02
    assert difference.max() < 0.05


@pytest.mark.parametrize("weights", ["random", "imagenet"])
def test_the_same_cell_as_bmp_and_as_jpeg_has_the_same_probability(weights, request):
    size, name = 96, ModelName.VGG16
    layers = vgg.conv_stack(name) + vgg.head(HeadKind.FLATTEN, 0.5)
    params = vgg.init_params(vgg.param_shapes(vgg.VGG(layers), size), seed=0)
    config = SyntheticConfig(num_images=16, num_patients=16)
    cells = [synthetic.draw(config, i) for i in range(0, 16, 2)]
    if weights == "imagenet":
        path = request.getfixturevalue("vgg16_weights")
        found = pretrained.find(name, str(path), path.parent)
        params = pretrained.merge(params, found.arrays, keep=(r"dense_.*",))
    check(cells, params, layers, size)
