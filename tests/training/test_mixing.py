"""Mixup: who is mixed with whom, by how much, and what the loss then is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.training import mixing, steps


def drawn(valid, alpha=1.0, *, seed=0) -> mixing.Mixing:
    found = mixing.draw(jax.random.key(seed), jnp.asarray(valid, jnp.float32), alpha)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "valid", [[1] * 8, [1] * 5 + [0] * 3, [0, 1, 1, 0, 1, 1, 1, 0], [0] * 4]
)
def test_every_image_is_the_partner_of_one_and_padding_of_itself(valid):
    places = np.arange(len(valid))
    there = places[np.array(valid) > 0]
    for seed in range(20):
        partner = np.asarray(drawn(valid, seed=seed).partner)
        assert sorted(partner[there]) == there.tolist()
        assert np.array_equal(np.delete(partner, there), np.delete(places, there))


def test_every_image_may_be_the_partner_of_every_one():
    valid = [1, 1, 0, 1, 1]
    met = np.zeros((5, 5))
    for seed in range(400):
        met[np.arange(5), np.asarray(drawn(valid, seed=seed).partner)] += 1
    images = met[np.ix_([0, 1, 3, 4], [0, 1, 3, 4])]
    # 100 each are expected, with a deviation of 9.
    assert images.min() > 60
    assert images.max() < 140


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0, 1000.0])
def test_shares_are_of_the_beta_distribution(alpha):
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: mixing.draw(key, jnp.ones(2), alpha))(keys)
    assert found is not None
    share = np.asarray(found.share)
    assert share.min() >= 0
    assert share.max() <= 1
    deviation = (1 / (4 * (2 * alpha + 1))) ** 0.5
    assert share.mean() == pytest.approx(0.5, abs=5 * deviation / 4000**0.5)
    assert share.std() == pytest.approx(deviation, rel=0.05)


def test_values_are_mixed_as_equation_1_says():
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    mixed = mixing.Mixing(jnp.array([2, 1, 3, 0]), jnp.float32(0.7))
    expected = 0.7 * values + 0.3 * values[[2, 1, 3, 0]]
    np.testing.assert_allclose(
        mixing.mix(jnp.asarray(values), mixed), expected, rtol=1e-6
    )
    half = mixing.mix(jnp.asarray(values, jnp.bfloat16), mixed)
    assert half.dtype == jnp.bfloat16


def test_nothing_is_mixed_with_an_alpha_of_0():
    assert mixing.draw(jax.random.key(0), jnp.ones(4), 0.0) is None
    values = jnp.ones((4, 3))
    assert mixing.mix(values, None) is values


def test_the_loss_is_that_of_both_labels_by_their_shares():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 2)).astype(np.float32)
    label, valid = np.array([0, 1, 1, 0, 1]), np.array([1, 1, 1, 1, 0], np.float32)
    partner, weights = [3, 0, 1, 2, 4], np.array([0.5, 2.0], np.float32)

    def sums(label, smoothing, mixed=None):
        return steps.mean_loss(
            jnp.asarray(logits),
            jnp.asarray(label),
            jnp.asarray(valid),
            weights,
            smoothing=smoothing,
            mixed=mixed,
        )

    mixed = mixing.Mixing(jnp.array(partner), jnp.float32(0.7))
    for smoothing in (0.0, 0.2):
        mean, found = sums(label, smoothing, mixed)
        own_mean, own = sums(label, smoothing)
        other_mean, other = sums(label[partner], smoothing)
        assert float(mean) == pytest.approx(
            0.7 * float(own_mean) + 0.3 * float(other_mean), rel=1e-5
        )
        assert float(found.correct) == pytest.approx(
            0.7 * float(own.correct) + 0.3 * float(other.correct)
        )
        assert float(found.count) == 4
    # And by hand, from the targets that the equation gives.
    target = 0.7 * np.eye(2)[label] + 0.3 * np.eye(2)[label[partner]]
    log = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    expected = -(target * weights * log).sum(1)[:4].mean()
    assert float(sums(label, 0.0, mixed)[0]) == pytest.approx(expected, rel=1e-5)
