"""A trained network with what it needs to read images and to speak in probabilities."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.models import test_time_views, vgg
from allcls_jax.models.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Pure functions from images to P(ALL); they may be compiled and differentiated.

    Attributes:
      model: the convolutional stack and the head.
      params: of all its layers.
      preprocessing: what the network expects.
      image_size: height and width of its input, pixels.
      temperature: that divides the difference of the logits; 1 changes nothing.
      views: of an image, whose logits are averaged; see `test_time_views`.
    """

    model: vgg.VGG
    params: vgg.Params
    preprocessing: Preprocessing
    image_size: int
    temperature: float
    views: int = 1

    def logits(
        self, images: jax.Array | np.ndarray, params: vgg.Params | None = None
    ) -> jax.Array:
        """Returns (n, 2) float32, in the order HEM, ALL.

        Args:
          images: (n, image_size, image_size, 3) RGB grey levels, uint8 or float32.
          params: in place of its own; as arguments of a compiled function they are not
            built into it.
        """
        own = self.params if params is None else params

        def network(images: jax.Array) -> jax.Array:
            output: Any = self.model.apply({"params": own}, self.preprocessing(images))
            return output[0]

        return test_time_views.mean_logits(network, images, self.views)

    def plain(
        self,
        images: jax.Array | np.ndarray,
        params: Mapping[str, Mapping[str, jax.Array | np.ndarray]],
    ) -> tuple[jax.Array, jax.Array]:
        """Returns logits (n, 2) and calibrated P(ALL) (n,), float32, computed plainly.

        Each convolution is computed as everybody computes it, and not as is fast on a
        CPU, whose rounding would take up half of what an export may differ; and in
        float32, whatever the network's own type.

        Args:
          images: as for `logits`.
          params: of all layers.
        """
        network = vgg.VGG(self.model.layers, plain=True)

        def plainly(images: jax.Array) -> jax.Array:
            output: Any = network.apply({"params": params}, self.preprocessing(images))
            return output[0]

        logits = test_time_views.mean_logits(plainly, images, self.views)
        return logits, self.probability(logits)

    def log_odds(self, logits: jax.Array) -> jax.Array:
        """Returns the calibrated log odds of ALL, (n,) float32, of logits (n, 2)."""
        return (logits[:, ALL] - logits[:, HEM]) / self.temperature

    def probability(self, logits: jax.Array) -> jax.Array:
        """Returns the calibrated P(ALL), (n,) float32, of logits (n, 2)."""
        return jax.nn.sigmoid(self.log_odds(logits))
