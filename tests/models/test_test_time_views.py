"""Logits of several views: of which pictures they are, and that they are their mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.data import augmentation
from allcls_jax.data.copies import turn
from allcls_jax.models import test_time_views, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import CAFFE

MODEL = vgg.VGG(vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5))
PARAMS = vgg.init_params(vgg.param_shapes(MODEL, 32), seed=0)
IMAGES = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
ONE = Classifier(MODEL, PARAMS, CAFFE, 32, 0.5)
EIGHT = dataclasses.replace(ONE, views=8)


def turned(images: np.ndarray, degrees: float) -> jax.Array:
    each = jnp.ones(len(images))
    return augmentation.rotate_and_zoom(
        jnp.asarray(images), degrees=degrees * each, zoom=each
    )


def test_views_are_those_that_training_draws():
    found = list(test_time_views.of_images(IMAGES, 8))
    assert len(found) == 8
    for view, images in enumerate(found):
        assert images.dtype == np.uint8
        for one, image in zip(images, IMAGES, strict=True):
            np.testing.assert_array_equal(one, turn(image, view))


def test_logits_are_the_mean_over_flips_and_turns():
    copies = [
        np.rot90(mirrored, k, (1, 2))
        for mirrored in (IMAGES, IMAGES[:, ::-1])
        for k in range(4)
    ]
    every = np.array([ONE.logits(copy) for copy in copies])
    assert np.ptp(every, axis=0).min() > 1e-3, "the views must differ"
    for found in (EIGHT.logits(IMAGES), jax.jit(EIGHT.logits)(IMAGES)):
        np.testing.assert_allclose(found, every.mean(0), atol=1e-5)
    plain, probability = EIGHT.plain(IMAGES, PARAMS)
    np.testing.assert_allclose(plain, every.mean(0), atol=1e-5)
    apart = every.mean(0)[:, 1] - every.mean(0)[:, 0]
    np.testing.assert_allclose(probability, jax.nn.sigmoid(apart / 0.5), atol=1e-5)


def test_more_views_are_those_of_pictures_turned_by_other_angles():
    expected = np.mean(
        [EIGHT.logits(IMAGES), *(EIGHT.logits(turned(IMAGES, d)) for d in (30, 60))],
        axis=0,
    )
    found = dataclasses.replace(ONE, views=24).logits(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - EIGHT.logits(IMAGES)).max() > 1e-3


def test_a_turned_picture_has_the_same_probability_with_all_views_only():
    quarter = np.rot90(IMAGES, 1, (1, 2))
    for classifier, same in ((ONE, False), (EIGHT, True)):
        one, other = (
            np.asarray(classifier.probability(classifier.logits(images)))
            for images in (IMAGES, quarter)
        )
        assert np.allclose(one, other, atol=1e-5) == same


@pytest.mark.parametrize("views", [0, -8, 2, 12])
def test_other_numbers_of_views_are_refused(views):
    with pytest.raises(ValueError, match=f"views = {views}: must be 1, or a multiple"):
        dataclasses.replace(ONE, views=views).logits(IMAGES)
