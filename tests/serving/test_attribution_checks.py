"""Shares on the cell, how alike maps are, and the sanity check's verdicts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from allcls_jax.models import vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.serving.explanation import checks
from allcls_jax.serving.explanation.attribution import attribute
from allcls_jax.serving.explanation.settings import Method, Settings

SIZE = 16


def half_cell() -> np.ndarray:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, : SIZE // 2, 2] = 9  # one channel is enough to be no background
    return image


def test_the_share_on_the_cell_is_of_absolute_values():
    images = np.stack([half_cell()] * 4)
    maps = np.zeros((4, SIZE, SIZE), np.float32)
    maps[0] = 1
    maps[1, 0, 0], maps[1, 0, -1] = -3, 1
    maps[2, 0, -1] = 2
    assert checks.shares_on_cell(maps, images) == [0.5, 0.75, 0.0, None]
    assert checks.cell_mask(images).mean() == 0.5


def test_maps_are_compared_on_the_cell_alone():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, SIZE, SIZE))
    mask = np.zeros((SIZE, SIZE), bool)
    mask[3:9, 4:12] = True
    found = checks.similarity(first, second, mask)
    size = np.abs(first[mask]), np.abs(second[mask])
    assert found.spearman == pytest.approx(
        np.corrcoef(*map(stats.rankdata, size))[0, 1]
    )
    assert found.correlation == pytest.approx(np.corrcoef(*size)[0, 1])
    signed = map(stats.rankdata, (first[mask], second[mask]))
    assert found.spearman_signed == pytest.approx(np.corrcoef(*signed)[0, 1])
    second[~mask] = 1e6
    assert checks.similarity(first, second, mask) == found


def test_a_map_that_only_changed_its_sign_counts_as_the_same():
    first = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    found = checks.similarity(first, -2 * first, np.ones((SIZE, SIZE), bool))
    assert found.spearman == pytest.approx(1)
    assert found.correlation == pytest.approx(1)
    assert found.spearman_signed == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 0.7, -1e-9])
def test_a_constant_map_is_undefined(constant):
    first = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    second = np.full((SIZE, SIZE), constant, np.float32)
    mask = np.ones((SIZE, SIZE), bool)
    undefined = checks.Similarity(None, None, None)
    assert checks.similarity(first, second, mask) == undefined
    assert checks.similarity(second, first, mask) == undefined
    assert checks.similarity(first, first, ~mask) == undefined
    # What rounding leaves of a constant is no map either.
    second[0, 0] *= 1 + 2e-7
    assert checks.similarity(first, second, mask) == undefined


def weighing(kernels: np.ndarray, *, counting: int) -> Classifier:
    """A network of one convolution, of whose channels the first few make the log odds.

    Args:
      kernels: (channels, 27), of the convolution.
      counting: how many channels count.
    """
    channels = len(kernels)
    model = vgg.VGG(
        (
            vgg.Conv("block5_conv1", channels),
            vgg.MaxPool("block5_pool"),
            vgg.GlobalAveragePool("pooling"),
            vgg.Dense("dense_3", 2, relu=False),
        )
    )
    dense = np.zeros((channels, 2), np.float32)
    dense[:counting, 1] = 1
    kernel = kernels.T.reshape(3, 3, 3, channels).astype(np.float32)
    params = {
        "block5_conv1": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(channels)},
        "dense_3": {"kernel": jnp.asarray(dense), "bias": jnp.zeros(2)},
    }
    raw = Preprocessing("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Classifier(model, params, raw, SIZE, 1.0)


# A channel for each colour of the pixel itself.
MIDDLE = np.eye(27)[12:15]


def sanity(network: Classifier, images: np.ndarray, **settings) -> checks.SanityCheck:
    chosen, sign = Settings(**settings), np.ones(len(images))
    trained = attribute(network, images, sign, chosen).values
    advanced: list[int] = []
    found = checks.sanity_check(
        network, images, sign, trained, chosen, draws=8, advance=advanced.append
    )
    assert sum(advanced) == len(images) * 8 * checks.num_stages(network)
    return found


def test_maps_that_know_the_weights_change_with_them():
    """Each channel is noise of its own: which one counts decides the map."""
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    found = sanity(weighing(np.eye(27), counting=1), images)
    assert found.hardly_change is False
    assert found.verdict.startswith("maps change with the weights")
    assert "of the first 2 maps with those of random weights" in found.verdict
    assert [stage.randomised for stage in found.stages] == [
        ("head",),
        ("head", "block5"),
    ]
    assert {stage.pairs for stage in found.stages} == {16}


def test_maps_that_show_the_picture_alone_are_called_out():
    """All colours are one: whatever the head says, the map is the picture."""
    noise = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 1), np.uint8)
    images = np.repeat(noise, 3, axis=-1)
    found = sanity(weighing(MIDDLE, counting=3), images)
    assert found.hardly_change is True
    assert found.worst is not None
    assert found.worst.randomised == ("head",)
    assert found.worst.spearman == pytest.approx(1)
    assert found.verdict.startswith("maps hardly change: do not trust them")
    # Where the random head weighs the picture down, Grad-CAM gives no map.
    assert 0 < found.worst.undefined < found.worst.pairs
    assert found.to_dict()["verdict"] == found.verdict


def test_a_sign_that_turns_does_not_hide_that_maps_hardly_change():
    noise = np.random.default_rng(0).integers(1, 256, (2, SIZE, SIZE, 1), np.uint8)
    images = np.repeat(noise, 3, axis=-1)
    found = sanity(
        weighing(MIDDLE, counting=3), images, method=Method.OCCLUSION, patch=2, stride=2
    )
    assert found.hardly_change is True
    first = found.stages[0]
    assert first.spearman == pytest.approx(1, abs=1e-3)
    assert first.spearman_signed is not None
    assert first.spearman_signed < 0.9


def test_constant_maps_give_no_verdict():
    images = np.full((2, SIZE, SIZE, 3), 100, np.uint8)
    found = sanity(weighing(MIDDLE, counting=3), images)
    assert found.hardly_change is None
    assert found.verdict.startswith("undefined")
    stages = found.to_dict()["stages"]
    assert all(stage["spearman"] is None for stage in stages)
    assert all(stage["undefined"] == stage["pairs"] for stage in stages)


def test_a_mean_over_few_of_the_pairs_gives_no_verdict():
    stage = checks.Stage(
        randomised=("head",),
        spearman=0.99,
        spearman_signed=0.99,
        correlation=0.99,
        pairs=12,
        undefined=10,
    )
    few = checks.SanityCheck(images=4, draws=3, stages=(stage,))
    assert few.hardly_change is None
    enough = dataclasses.replace(stage, undefined=9)
    many = checks.SanityCheck(images=4, draws=3, stages=(enough,))
    assert many.hardly_change is True


def test_a_check_left_out_says_so():
    found = checks.SanityCheck(images=0, draws=0)
    assert found.hardly_change is None
    assert found.verdict.startswith("not done")


def test_weights_become_random_from_the_top(tiny_model):
    network = tiny_model.classifier
    layers = list(network.params)
    changed = []
    for part, random in checks.cascade(network, seed=1):
        kernels = [
            name
            for name in layers
            if not np.array_equal(
                random.params[name]["kernel"], network.params[name]["kernel"]
            )
        ]
        changed.append((part, kernels))
    head = ["dense_2", "dense_3"]
    assert changed[0] == ("head", [name for name in layers if name in head])
    for number, (part, kernels) in zip(range(5, 0, -1), changed[1:], strict=True):
        assert part == f"block{number}"
        expected = {*head, *(f"block{b}_conv1" for b in range(number, 6))}
        assert set(kernels) == expected
    assert checks.num_stages(network) == len(changed) == 6
