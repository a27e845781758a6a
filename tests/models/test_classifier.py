import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.models import vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import CAFFE

LAYERS = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.GAP, 0.5)
MODEL = vgg.VGG(LAYERS)
PARAMS = vgg.init_params(vgg.param_shapes(MODEL, 32), seed=0)
IMAGES = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)


def test_logits_are_those_of_the_network_on_preprocessed_images():
    classifier = Classifier(MODEL, PARAMS, CAFFE, 32, 2.0)
    expected, _ = MODEL.apply({"params": PARAMS}, CAFFE(IMAGES))
    np.testing.assert_array_equal(classifier.logits(IMAGES), expected)
    np.testing.assert_array_equal(classifier.logits(IMAGES, PARAMS), expected)


def test_the_temperature_divides_the_log_odds_of_all():
    classifier = Classifier(MODEL, PARAMS, CAFFE, 32, 2.0)
    logits = jnp.array([[0.0, 3.0], [1.0, 1.0], [2.0, -2.0]])
    np.testing.assert_allclose(classifier.log_odds(logits), [1.5, 0, -2])
    np.testing.assert_allclose(
        classifier.probability(logits), jax.nn.sigmoid(jnp.array([1.5, 0, -2]))
    )
