"""Learning rates: over the run, and from parameter to parameter."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import OptimConfig, OptimizerName, Schedule
from allcls_jax.training import optim

PARAMS = {
    "block1_conv1": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
    "dense_2": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.zeros(2)},
}
GRADIENTS = jax.tree.map(lambda p: jnp.full_like(p, 0.5), PARAMS)


def rates(config: OptimConfig, steps: int) -> list[float]:
    """Returns the learning rate of each step of a run of epochs of ten steps."""
    rate = jax.jit(
        lambda step: optim.learning_rate(
            config,
            step,
            highest=2.0,
            steps_per_epoch=jnp.float32(10),
            total_steps=jnp.float32(steps),
        )
    )
    return [float(rate(jnp.int32(step))) for step in range(steps)]


def test_a_constant_rate_is_the_number_itself():
    assert rates(OptimConfig(), 20) == [2.0] * 20


def test_the_warm_up_rises_evenly_to_the_highest_rate():
    found = rates(OptimConfig(warmup=0.5), 20)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[5:] == [2.0] * 15


def test_a_cosine_ends_at_nothing():
    found = rates(OptimConfig(schedule=Schedule.COSINE, warmup=1.0), 40)
    assert found[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    expected = [1 + math.cos(math.pi * i / 30) for i in range(30)]
    assert found[10:] == pytest.approx(expected, rel=1e-5)
    assert found[-1] < 0.01


@pytest.mark.parametrize("name", [OptimizerName.ADAMW, OptimizerName.SGD])
def test_a_share_scales_all_that_moves_a_parameter(name: OptimizerName):
    """Weight decay too, as a learning rate of its own would."""
    config = OptimConfig(name=name, weight_decay=0.1, learning_rate=0.01)

    def moved(rules: tuple[tuple[str, float], ...]) -> dict[str, dict[str, np.ndarray]]:
        shares = optim.learning_rate_shares(PARAMS, rules)
        optimizer = optim.make_optimizer(config, shares)
        state = optimizer.init(PARAMS)
        updates, state = optimizer.update(GRADIENTS, state, PARAMS)
        updates, _ = optimizer.update(GRADIENTS, state, PARAMS)
        return jax.tree.map(np.asarray, updates)

    whole = moved(((r".*", True),))
    found = moved(((r"block.*", 0.25), (r"dense.*", 3.0)))
    for layer, share in (("block1_conv1", 0.25), ("dense_2", 3.0)):
        for part in ("kernel", "bias"):
            np.testing.assert_allclose(
                found[layer][part], share * whole[layer][part], rtol=1e-6
            )
    frozen = moved(((r"block.*", 0), (r"dense.*", 3.0)))
    assert not frozen["block1_conv1"]["kernel"].any()
    np.testing.assert_allclose(
        frozen["dense_2"]["kernel"], found["dense_2"]["kernel"], rtol=1e-6
    )


def test_clipping_is_over_what_is_trained_and_before_the_shares():
    config = OptimConfig(name=OptimizerName.SGD, clip_norm=1.0, learning_rate=1.0)
    shares = optim.learning_rate_shares(
        PARAMS, ((r"block.*", False), (r".*kernel", 0.5), (r".*", True))
    )
    optimizer = optim.make_optimizer(config, shares)
    found, _ = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
    updates: Any = found
    norm = 0.5 * math.sqrt(4 + 2)
    # Nesterov: the gradient, and 0.9 of a momentum that is the gradient.
    np.testing.assert_allclose(updates["dense_2"]["bias"], -1.9 * 0.5 / norm, rtol=1e-6)
    np.testing.assert_allclose(
        updates["dense_2"]["kernel"], -1.9 * 0.25 / norm, rtol=1e-6
    )
