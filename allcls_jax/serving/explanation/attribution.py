"""Which pixels of a cell a network's log odds rest on: four published methods, in JAX.

What is explained is the calibrated log odds of ALL, or of HEM, which are the same with
the opposite sign. A map is positive where the cell speaks for the class explained and,
where the method can tell, negative where it speaks against it. Everything is computed
in float32 whatever the network was trained in, gradients through plain convolutions.
Maps belong to one network: nothing here says what a cell is.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.errors import InputError
from allcls_jax.models import test_time_views, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.serving.explanation.settings import Method, Settings

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """Maps of n images, on the host.

    Attributes:
      values: (n, s, s) float32, positive for the class explained.
      log_odds: (n,) float32, of ALL, calibrated, of each picture as it is: one view.
      black: log odds of ALL of a black picture; None unless integrated gradients.
    """

    values: np.ndarray
    log_odds: np.ndarray
    black: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Network:
    """What stays as it is when the weights of a classifier change."""

    model: vgg.VGG
    preprocessing: Preprocessing
    temperature: float

    def log_odds(self, logits: jax.Array) -> jax.Array:
        """Returns the calibrated log odds of ALL, (n,), of logits (n, 2)."""
        own = Classifier(self.model, {}, self.preprocessing, 0, self.temperature)
        return own.log_odds(logits)


def attribute(
    classifier: Classifier,
    images: np.ndarray,
    sign: np.ndarray,
    settings: Settings,
    *,
    batch_size: int = 8,
    advance: Advance = lambda _: None,
) -> Maps:
    """Returns a map for each image; compiles once for each size of batch.

    Other weights of the same network compile nothing anew.

    Args:
      classifier: its weights may be of any kind, its dtype is not used.
      images: (n, s, s, 3) uint8, n at least 1.
      sign: (n,): 1 explains ALL, -1 explains HEM.
      settings: the method.
      batch_size: images (for occlusion: patches) in the memory at a time; fewer are
        filled up to as many.
      advance: is called with the number of images just finished.

    Raises:
      InputError: if the settings do not fit the images, or the network has no such
        block.
    """
    settings.check(images.shape[1])
    settings = settings.in_network(classifier.model.layers)
    network = _network(classifier)
    images = np.asarray(classifier.preprocessing.seen(images))
    if settings.method == Method.OCCLUSION:
        return _occlusion(
            network, classifier.params, images, sign, settings, batch_size, advance
        )
    if settings.method == Method.INTEGRATED_GRADIENTS:
        run = functools.partial(
            integrated_gradients, network, classifier.params, steps=settings.steps
        )
    else:
        assert settings.block is not None, "in the network"
        last_convolution(network.model.layers, settings.block)
        run = functools.partial(
            class_activation,
            network,
            classifier.params,
            block=settings.block,
            plus=settings.method == Method.GRADCAM_PLUS,
        )
    values, log_odds, black = [], [], None
    signs = np.asarray(sign, np.float32)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        count = len(images[part])
        done = run(_filled(images[part], batch_size), _filled(signs[part], batch_size))
        maps, odds, *rest = (np.asarray(array) for array in done)
        values.append(maps[:count])
        log_odds.append(odds[:count])
        black = float(rest[0]) if rest else None
        advance(count)
    return Maps(np.concatenate(values), np.concatenate(log_odds), black)


def log_odds_of(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Returns the calibrated log odds of ALL (n,), in float32 as maps are made.

    They are those that the model decides by: their mean over all its views.

    Args:
      classifier: as for `attribute`.
      images: (n, s, s, 3) uint8; each n is compiled anew.
    """
    nothing = np.full((len(images), 2), images.shape[1], np.int32)
    odds = [
        hidden_log_odds(
            _network(classifier),
            classifier.params,
            classifier.preprocessing.seen(view),
            nothing,
            patch=1,
        )
        for view in test_time_views.of_images(images, classifier.views)
    ]
    return np.mean(np.asarray(odds), axis=0)


def last_convolution(layers: tuple[vgg.Layer, ...], block: int) -> int:
    """Returns the place of a block's last convolution in the table of layers.

    Raises:
      InputError: if the network has no such block.
    """
    places = [
        place
        for place, layer in enumerate(layers)
        if isinstance(layer, vgg.Conv) and layer.name.startswith(f"block{block}_")
    ]
    if not places:
        raise InputError(
            f"--block={block}: the network has no such block; give another"
        )
    return places[-1]


@functools.partial(jax.jit, static_argnames=("network", "block", "plus"))
def class_activation(
    network: _Network,
    params: vgg.Params,
    images: jax.Array,
    sign: jax.Array,
    *,
    block: int,
    plus: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns Grad-CAM or Grad-CAM++ maps (n, s, s) ≥ 0, and log odds (n,).

    Grad-CAM++ takes the exponential of the log odds for the class's score, as its
    authors do; the factor by which that scales a whole map is left out.
    """
    place = last_convolution(network.model.layers, block)
    first = _first_of_block(network.model.layers, place)
    layers = network.model.layers
    # No gradient goes through the blocks before, so the fast way is open to them.
    below, named = _apply(layers[:first], params, network.preprocessing(images))
    activations, _ = _apply_plainly(layers[first : place + 1], params, below)

    def behind(activations: jax.Array) -> jax.Array:
        logits, _ = _apply_plainly(layers[place + 1 :], params, activations, named)
        return network.log_odds(logits)

    log_odds, backwards = jax.vjp(behind, activations)
    (gradient,) = backwards(sign)
    if plus:
        # Where the gradient g is positive the paper's alpha is 1 / (2 + g sum(A)); the
        # ReLU drops all other places.
        sums = activations.sum((1, 2), keepdims=True)
        rising = jax.nn.relu(gradient)
        weights = (rising / (2 + rising * sums)).sum((1, 2))
    else:
        weights = gradient.mean((1, 2))
    coarse = jax.nn.relu(jnp.einsum("nhwc,nc->nhw", activations, weights))
    size = images.shape[1]
    maps = jax.image.resize(coarse, (len(images), size, size), "bilinear")
    return maps, log_odds


def integrated_gradients(
    network: _Network,
    params: vgg.Params,
    images: np.ndarray,
    sign: np.ndarray,
    *,
    steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns maps (n, s, s), log odds (n,), and those of a black picture ().

    The path leads straight from black to the picture, and a pixel's colours are added
    up. The sum of a map is about `sign` times the difference of log odds between the
    picture and black. Steps are shorter near black, where networks turn most: a step in
    t is one in brightness t^3.
    """
    along = functools.partial(path_slopes, network, params, images, sign)
    total = jnp.zeros(images.shape[:3])
    # Not in a loop of XLA's, where convolutions on a CPU take several times as long.
    for step in range(steps):
        total += along(jnp.float32((step + 0.5) / steps))[0]
    return total / steps, along(jnp.float32(1))[1], along(jnp.float32(0))[1][0]


@functools.partial(jax.jit, static_argnames=("network",))
def path_slopes(
    network: _Network,
    params: vgg.Params,
    images: jax.Array,
    sign: jax.Array,
    t: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns by how much each pixel moves the score with t (n, s, s), and log odds.

    Both at brightness t^3 of the images; log odds (n,) are of ALL.
    """
    values = images.astype(jnp.float32)

    def score(values: jax.Array) -> jax.Array:
        inputs = network.preprocessing(values)
        logits, _ = _apply_plainly(network.model.layers, params, inputs)
        return network.log_odds(logits)

    log_odds, backwards = jax.vjp(score, t**3 * values)
    (gradient,) = backwards(sign)
    return (3 * t**2 * gradient * values).sum(-1), log_odds


@functools.partial(jax.jit, static_argnames=("network", "patch"))
def hidden_log_odds(
    network: _Network,
    params: vgg.Params,
    images: jax.Array | np.ndarray,
    corners: jax.Array | np.ndarray,
    *,
    patch: int,
) -> jax.Array:
    """Returns log odds (n,) of images of which a square each is set to black.

    Args:
      network: and
      params: of the classifier.
      images: (n, s, s, 3) uint8.
      corners: (n, 2) int32, first row and column of the square; s hides nothing.
      patch: side of the square, pixels.
    """
    beyond = jnp.arange(images.shape[1]) - corners[..., None]  # (n, 2, s)
    inside = (beyond >= 0) & (beyond < patch)
    hidden = inside[:, 0, :, None] & inside[:, 1, None, :]
    seen = jnp.where(hidden[..., None], 0, images)
    inputs = network.preprocessing(seen)
    logits, _ = _apply(network.model.layers, params, inputs)
    return network.log_odds(logits)


def _network(classifier: Classifier) -> _Network:
    """Returns the network behind `Preprocessing.seen`.

    What is hidden or faded is hidden in what the network sees: in the picture before it
    would change how strongly the rest of the cell is stained.
    """
    return _Network(
        vgg.VGG(classifier.model.layers),
        dataclasses.replace(classifier.preprocessing, normalise_stain=False),
        float(classifier.temperature),
    )


def _occlusion(
    network: _Network,
    params: vgg.Params,
    images: np.ndarray,
    sign: np.ndarray,
    settings: Settings,
    batch_size: int,
    advance: Advance,
) -> Maps:
    """Returns how far the score falls, on average over the patches that hide a pixel.

    A patch over nothing but black changes nothing, and is not computed.
    """
    n, size = images.shape[:2]
    patch, stride = settings.patch_and_stride(size)
    starts = sorted({*range(0, size - patch, stride), size - patch})
    nothing = size
    jobs = [(i, nothing, nothing) for i in range(n)]
    for i, image in enumerate(images):
        cell = image.any(-1)
        jobs += [
            (i, row, column)
            for row in starts
            for column in starts
            if cell[row : row + patch, column : column + patch].any()
        ]
    jobs.sort(key=lambda job: job[0])  # stable: the whole picture is each one's first
    left = np.bincount([i for i, *_ in jobs], minlength=n)
    table = np.array(jobs, np.int32)
    log_odds = np.zeros(len(jobs), np.float32)
    for start in range(0, len(jobs), batch_size):
        part = _filled(table[start : start + batch_size], batch_size)
        odds = hidden_log_odds(
            network, params, images[part[:, 0]], part[:, 1:], patch=patch
        )
        done = table[start : start + batch_size, 0]
        log_odds[start : start + batch_size] = np.asarray(odds)[: len(done)]
        before = np.count_nonzero(left)
        left -= np.bincount(done, minlength=n)
        if finished := int(before - np.count_nonzero(left)):
            advance(finished)

    whole = np.zeros(n, np.float32)
    total = np.zeros((n, size, size), np.float32)
    for (i, row, column), odds in zip(jobs, log_odds, strict=True):
        if row == nothing:
            whole[i] = odds
        else:
            fall = sign[i] * (whole[i] - odds)
            total[i, row : row + patch, column : column + patch] += fall
    begun = np.zeros(size, np.float32)
    for start in starts:
        begun[start : start + patch] += 1
    return Maps(total / np.outer(begun, begun), whole)


def _first_of_block(layers: tuple[vgg.Layer, ...], place: int) -> int:
    """Returns the place of the first convolution after the pooling before `place`."""
    while place and isinstance(layers[place - 1], vgg.Conv):
        place -= 1
    return place


_Named = dict[str, jax.Array]  # outputs of layers, by name


def _apply(
    layers: tuple[vgg.Layer, ...],
    params: vgg.Params,
    inputs: jax.Array,
    earlier: _Named | None = None,
) -> tuple[jax.Array, _Named]:
    """Returns the output of a part of a network, computed the fastest way.

    And the named ones so far, `earlier` being those of the layers before.
    """
    output: Any = vgg.VGG(layers).apply({"params": params}, inputs, earlier=earlier)
    return output


def _apply_plainly(
    layers: tuple[vgg.Layer, ...],
    params: vgg.Params,
    inputs: jax.Array,
    earlier: _Named | None = None,
) -> tuple[jax.Array, _Named]:
    """Returns the same as `_apply`, with every convolution computed on its own."""
    # The fast way takes whole blocks; a table that ends before the pooling has none.
    start = 0
    for place, layer in enumerate(layers):
        if isinstance(layer, vgg.MaxPool):
            inputs, earlier = _apply(layers[start:place], params, inputs, earlier)
            start = place
    return _apply(layers[start:], params, inputs, earlier)


def _filled(array: np.ndarray, size: int) -> np.ndarray:
    """Returns as many rows as asked for, the last one repeated."""
    missing = size - len(array)
    return np.concatenate([array, array[-1:].repeat(missing, axis=0)])
