"""Steps: what moves, what it costs, and golden numbers of one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allcls_jax.config import (
    AugmentConfig,
    HeadKind,
    ModelName,
    OptimConfig,
    OptimizerName,
    TrainConfig,
)
from allcls_jax.data import copies
from allcls_jax.errors import InputError
from allcls_jax.models import blocks, vgg
from allcls_jax.models.preprocessing import CAFFE
from allcls_jax.training import mixing, optim, sharding, state, steps
from allcls_jax.training.steps import RunSettings

RULES = OptimConfig().trainable
STEPS, EPOCHS = 10, 3  # of a run


@dataclasses.dataclass
class Setup:
    model: vgg.VGG
    params: Any  # arrays, or their shapes
    mask: optim.Mask
    steps: steps.Steps
    settings: RunSettings
    state: state.TrainState


def build(
    *,
    name=ModelName.TINY,
    size=32,
    config=None,
    class_weights=(1.0, 1.0),
    dropout=0.5,
    abstract=False,
    dtype=jnp.float32,
    augment=None,
    smoothing=0.0,
    mixup=0.0,
):
    config = config or OptimConfig()
    layers = vgg.conv_stack(name) + vgg.head(HeadKind.FLATTEN, dropout)
    model = vgg.VGG(layers, dtype=dtype)
    shapes = vgg.param_shapes(model, size)
    params = shapes if abstract else vgg.init_params(shapes, seed=7)
    shares = optim.learning_rate_shares(params, config.trainable)
    mask = optim.trainable_mask(shares)
    optimizer = optim.make_optimizer(config, shares)
    compiled = steps.make_steps(
        model,
        CAFFE,
        config,
        shares,
        sharding.data_parallel(),
        augment=augment or AugmentConfig(),
        train=TrainConfig(label_smoothing=smoothing, mixup=mixup),
    )
    settings = RunSettings(
        np.uint32(0),
        np.array(class_weights, np.float32),
        np.float32(STEPS),
        np.float32(EPOCHS * STEPS),
    )
    begin = (jax.eval_shape if abstract else lambda f, *a: f(*a))(
        lambda p: state.create(p, optimizer, mask, averaged=bool(config.ema)), params
    )
    return Setup(model, params, mask, compiled, settings, begin)


def make_batch(n=8, size=32, seed=0, padding=0):
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 2).astype(np.int32)
    image = rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
    mask = np.ones(n, np.float32)
    if padding:
        mask[-padding:] = 0
    return {
        "image": image,
        "view": np.zeros(n, np.int32),
        "label": label,
        "mask": mask,
        "row": np.where(mask > 0, np.arange(n), -1).astype(np.int32),
    }


def flat(tree):
    return {name: np.asarray(a) for name, a in vgg.flatten_params(tree).items()}


def test_the_default_trains_the_head_only():
    mask = vgg.flatten_params(build().mask)
    assert {name for name, moves in mask.items() if moves} == {
        "dense_2/kernel",
        "dense_2/bias",
        "dense_3/kernel",
        "dense_3/bias",
    }


def test_the_first_rule_that_matches_decides():
    rules = ((r"block5_conv1/kernel", True), (r"block\d_.*", False), (r".*", True))
    mask = vgg.flatten_params(optim.learning_rate_shares(build().params, rules))
    assert mask["block5_conv1/kernel"]
    assert not mask["block5_conv1/bias"]
    assert mask["dense_3/bias"]


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (((r".*", False),), "no parameter is trainable"),
        (((r"dense_\d/.*", True),), "no rule matches block1_conv1/bias"),
        (((r"block", False), (r".*", True)), "'block' decides over no parameter"),
        ((), "no rule matches"),
    ],
)
def test_rules_that_cover_badly_are_refused(rules, named):
    with pytest.raises(InputError, match=r"optim\.trainable") as error:
        optim.learning_rate_shares(build().params, rules)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(),
        OptimConfig(clip_norm=0.1),
        OptimConfig(name=OptimizerName.ADAMW, weight_decay=0.1, clip_norm=0.1),
        OptimConfig(name=OptimizerName.SGD, weight_decay=0.1, learning_rate=1e-6),
    ],
    ids=["adam", "clipped", "adamw", "sgd"],
)
def test_frozen_parameters_keep_their_bits_and_have_no_state(config):
    setup = build(config=config)
    # A negative zero would lose its sign where an update of zero is added to it.
    frozen = setup.params["block1_conv1"]
    frozen["bias"] = jnp.full_like(frozen["bias"], -0.0)
    before = {name: a.tobytes() for name, a in flat(setup.params).items()}
    now = setup.state
    for seed in range(3):
        now, _ = setup.steps.train(now, make_batch(seed=seed), None, setup.settings)
    after = flat(now.params)
    for name, moves in vgg.flatten_params(setup.mask).items():
        assert (after[name].tobytes() != before[name]) == moves, name
    shapes = {a.shape for a in jax.tree.leaves(now.opt_state)}
    backbone = {a.shape for name, a in after.items() if name.startswith("block")} - {
        a.shape for name, a in after.items() if name.startswith("dense")
    }
    assert not shapes & backbone
    assert jax.tree.leaves(now.opt_state), "there is some state"


def test_clipping_looks_at_trainable_gradients_only():
    """With plain SGD and no momentum yet, the first update's norm is lr x clip."""
    config = OptimConfig(name=OptimizerName.SGD, learning_rate=0.5, clip_norm=0.01)
    setup = build(config=config, dropout=0.0)
    before = flat(setup.params)
    now, _ = setup.steps.train(setup.state, make_batch(), None, setup.settings)
    moved = [flat(now.params)[name] - before[name] for name in before]
    norm = np.sqrt(sum((d.astype(np.float64) ** 2).sum() for d in moved))
    # Nesterov's first step is 1 + momentum times the gradient.
    np.testing.assert_allclose(norm, 0.5 * 1.9 * 0.01, rtol=1e-4)


@pytest.mark.parametrize("name", [ModelName.VGG16, ModelName.VGG19])
def test_a_step_with_a_frozen_backbone_costs_little_more_than_a_forward(
    name, monkeypatch
):
    # Both are counted in the same, plain products.
    monkeypatch.setattr(blocks, "winograd_runs", lambda dtype: False)
    setup = build(
        name=name,
        size=64,
        abstract=True,
        config=OptimConfig(name=OptimizerName.ADAMW, weight_decay=0.01, clip_norm=1.0),
    )
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), make_batch(4, 64)
    )
    flops = [
        step.lower(first, batch, None, *settings).compile().cost_analysis()["flops"]
        for step, first, *settings in (
            (setup.steps.train, setup.state, setup.settings),
            (setup.steps.eval, setup.params),
        )
    ]
    assert flops[1] > 1e9
    assert flops[0] <= 1.2 * flops[1]


def test_one_step_gives_golden_numbers():
    """One Adam step of the tiny network on a fixed batch.

    If this fails and you did not mean to change initialisation, preprocessing, loss,
    dropout or optimizer, find the change that did. If you did mean it, run the test,
    look at the new numbers and whether they make sense, and write them here.
    """
    setup = build(config=OptimConfig(learning_rate=1e-3))
    now, loss = setup.steps.train(setup.state, make_batch(), None, setup.settings)
    params = flat(now.params)
    found = [
        float(loss),
        float(now.sums.loss),
        float(params["dense_3/kernel"].sum()),
        float(np.abs(params["dense_2/kernel"]).sum()),
        float(params["dense_3/bias"][0]),
    ]
    np.testing.assert_allclose(found, GOLDEN_STEP, rtol=2e-5)


GOLDEN_STEP = [0.8576238, 6.8609900, -2.4996326, 298.183013, -0.00099999]


def test_padding_counts_for_nothing():
    setup = build(dropout=0.0)
    full, padded = make_batch(6), make_batch(8, padding=2)
    for name in ("image", "label"):
        padded[name][:6] = full[name]
    padded["image"][6:] = 255
    of_full, p_full, _ = setup.steps.eval(setup.params, full, None)
    of_padded, p_padded, row = setup.steps.eval(setup.params, padded, None)
    assert float(of_padded.count) == 6
    np.testing.assert_allclose(of_padded.loss, of_full.loss, rtol=1e-6)
    np.testing.assert_allclose(p_padded[:6], p_full, rtol=1e-5)
    assert np.asarray(row)[6:].tolist() == [-1, -1]
    one, loss = setup.steps.train(setup.state, full, None, setup.settings)
    other, padded_loss = setup.steps.train(
        build(dropout=0.0).state, padded, None, setup.settings
    )
    np.testing.assert_allclose(loss, padded_loss, rtol=1e-6)
    # Adam's first step is the sign of the gradient: compare its first moment.
    for a, b in zip(
        jax.tree.leaves(one.opt_state), jax.tree.leaves(other.opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_class_weights_weigh_the_loss():
    batch = make_batch()
    setup = build(dropout=0.0)
    logits, _ = setup.model.apply(
        {"params": setup.params}, CAFFE(jnp.asarray(batch["image"]))
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    expected = np.mean(np.asarray(losses) * np.where(batch["label"] == 1, 3.0, 0.5))
    weighted = build(dropout=0.0, class_weights=(0.5, 3.0))
    _, loss = weighted.steps.train(weighted.state, batch, None, weighted.settings)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_smoothed_labels_are_a_mixture_of_both_classes():
    """Of the training loss; validation is of labels as they are."""
    logits = np.array([[0.5, 2.0], [-1.0, 3.0]], np.float32)
    label, valid = np.array([1, 0]), jnp.ones(2)
    targets = np.array([[0.1, 0.9], [0.9, 0.1]])
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mean, _ = steps.mean_loss(
        jnp.asarray(logits), jnp.asarray(label), valid, np.ones(2), smoothing=0.2
    )
    np.testing.assert_allclose(mean, -(targets * log).sum(-1).mean(), rtol=1e-6)
    batch = make_batch()
    plain, smooth = build(dropout=0.0), build(dropout=0.0, smoothing=0.2)
    values = []
    for setup in (plain, smooth):
        own = jax.tree.map(jnp.copy, setup.state)
        sums, _, _ = setup.steps.eval(own.params, batch, None)
        _, loss = setup.steps.train(own, batch, None, setup.settings)
        values.append((float(sums.loss) / 8, float(loss)))
    assert values[0][0] == pytest.approx(values[0][1], rel=1e-5)
    assert values[1][0] == values[0][0]
    assert values[1][1] != pytest.approx(values[0][1], rel=1e-4)


def test_where_all_of_a_network_learns_its_input_is_mixed():
    """Padding has no part in it; validation is of images as they are."""
    setup = build(config=OptimConfig(trainable=((".*", True),)), dropout=0.0, mixup=0.8)
    batch = make_batch(padding=3)
    key = steps.random_stream("mixup", setup.settings.seed, 0)
    mixed = mixing.draw(key, jnp.asarray(batch["mask"]), 0.8)
    assert mixed is not None
    share, partner = float(mixed.share), np.asarray(mixed.partner)[:5]
    assert 0.05 < share < 0.95
    assert (partner != np.arange(5)).sum() > 2
    params, label = setup.state.params, batch["label"][:5]
    pixels = np.asarray(CAFFE(batch["image"]))[:5]
    logits, _ = setup.model.apply(
        {"params": params}, share * pixels + (1 - share) * pixels[partner]
    )
    target = share * np.eye(2)[label] + (1 - share) * np.eye(2)[label[partner]]
    expected = -(target * np.asarray(jax.nn.log_softmax(logits))).sum(-1).mean()
    unmixed, _ = setup.model.apply({"params": params}, pixels)
    as_they_are = optax.softmax_cross_entropy_with_integer_labels(unmixed, label)
    sums, _, _ = setup.steps.eval(params, batch, None)
    np.testing.assert_allclose(sums.loss, as_they_are.sum(), rtol=1e-4)
    _, loss = setup.steps.train(setup.state, batch, None, setup.settings)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert abs(float(loss) - float(as_they_are.mean())) > 1e-2


def test_a_running_mean_is_validated_and_kept():
    setup = build(config=OptimConfig(ema=0.5, learning_rate=0.01), dropout=0.0)
    now, kept = setup.state, flat(setup.state.average)
    for step in range(4):
        now, _ = setup.steps.train(now, make_batch(seed=step), None, setup.settings)
        old = min(0.5, (1 + step) / (10 + step))
        moved = flat(optim.trainable(now.params, setup.mask))
        kept = {k: old * v + (1 - old) * moved[k] for k, v in kept.items()}
    for name, array in flat(now.average).items():
        np.testing.assert_allclose(array, kept[name], rtol=1e-4, atol=1e-7)
        assert not np.allclose(array, moved[name], rtol=1e-4)
    used = flat(now.used())
    assert np.array_equal(used["dense_2/kernel"], flat(now.average)["dense_2/kernel"])
    assert np.array_equal(
        used["block1_conv1/kernel"], flat(now.params)["block1_conv1/kernel"]
    )
    sums, _, _ = setup.steps.eval(now.used(), make_batch(), None)
    average = flat(now.average)
    now, _ = setup.steps.conclude(now, sums)
    for name, array in flat(now.best.params).items():
        assert np.array_equal(array, average[name])


def test_probability_is_that_of_all():
    setup = build()
    batch = make_batch()
    logits, _ = setup.model.apply(
        {"params": setup.params}, CAFFE(jnp.asarray(batch["image"]))
    )
    _, probability, _ = setup.steps.eval(setup.params, batch, None)
    np.testing.assert_allclose(
        probability, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), rtol=1e-4
    )


def test_bfloat16_computes_and_float32_keeps():
    exact, half = build(dropout=0.0), build(dropout=0.0, dtype=jnp.bfloat16)
    one, other = exact.state, half.state
    for seed in range(5):
        one, loss = exact.steps.train(one, make_batch(seed=seed), None, exact.settings)
        other, rounded = half.steps.train(
            other, make_batch(seed=seed), None, half.settings
        )
        assert rounded.dtype == jnp.float32
        assert float(rounded) != float(loss)
        np.testing.assert_allclose(rounded, loss, rtol=0.02)
    for leaf in jax.tree.leaves((other.params, other.opt_state, other.sums)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_steps_are_traced_once():
    setup = build()
    now = sharding.data_parallel().put_replicated(setup.state)
    for seed in range(3):
        now, _ = setup.steps.train(
            now, make_batch(seed=seed, padding=seed), None, setup.settings
        )
        batch = make_batch(seed=seed, padding=seed)
        sums, _, _ = setup.steps.eval(now.params, batch, None)
        now, _ = setup.steps.conclude(now, sums)
    for name in ("train", "eval", "conclude"):
        assert getattr(setup.steps, name)._cache_size() == 1, name


def test_sums_are_of_one_epoch():
    setup = build()
    now, _ = setup.steps.train(setup.state, make_batch(8), None, setup.settings)
    now, _ = setup.steps.train(now, make_batch(8, padding=3), None, setup.settings)
    assert float(now.sums.count) == 13
    assert int(now.step) == 2
    validation = state.Sums(jnp.float32(3), jnp.float32(1), jnp.float32(4))
    now, (of_training, of_validation) = setup.steps.conclude(now, validation)
    assert float(of_training.count) == 13
    assert float(of_validation.loss) == 3
    assert float(now.sums.count) == 0


def test_the_best_is_the_epoch_of_lowest_validation_loss():
    setup = build()
    now, seen = setup.state, []
    assert not np.isfinite(now.best.loss)
    for epoch, loss in enumerate([4.0, 2.0, 3.0, 2.0]):
        now, _ = setup.steps.train(now, make_batch(seed=epoch), None, setup.settings)
        seen.append(flat(optim.trainable(now.params, setup.mask)))
        sums = state.Sums(jnp.float32(loss), jnp.float32(1), jnp.float32(4))
        now, _ = setup.steps.conclude(now, sums)
    assert float(now.best.loss) == 0.5
    assert int(now.best.step) == 2, "the first of equals"
    best = flat(now.best.params)
    assert best.keys() == seen[1].keys()
    for name, array in best.items():
        assert np.array_equal(array, seen[1][name])
        assert not np.array_equal(array, seen[2][name])


def test_images_on_the_device_train_as_images_that_are_sent():
    setup, other = build(), build()
    batch = make_batch(padding=2)
    batch["view"] = np.arange(8, dtype=np.int32)
    order = np.random.default_rng(3).permutation(8)
    placed = {name: value for name, value in batch.items() if name != "image"}
    placed["position"] = order.astype(np.int32)
    resident = np.empty_like(batch["image"])
    resident[order] = batch["image"]
    one, loss = setup.steps.train(setup.state, batch, None, setup.settings)
    two, same = other.steps.train(other.state, placed, resident, other.settings)
    assert float(loss) == float(same)
    for name, array in flat(one.params).items():
        assert np.array_equal(array, flat(two.params)[name])


def test_a_view_is_the_image_turned():
    setup = build()
    batch = make_batch()
    turned = dict(batch, image=batch["image"].copy())
    batch["view"] = np.arange(8, dtype=np.int32)
    for i in range(8):
        turned["image"][i] = copies.turn(batch["image"][i], i)
    _, found, _ = setup.steps.eval(setup.params, batch, None)
    _, expected, _ = setup.steps.eval(setup.params, turned, None)
    assert np.array_equal(found, expected)
    _, plain, _ = setup.steps.eval(setup.params, make_batch(), None)
    assert not np.allclose(found[1:], plain[1:], rtol=1e-3)


def test_augmentation_is_for_training_and_new_in_each_step():
    varied = build(dropout=0.0, augment=AugmentConfig(rotation=90.0, stain=0.5))
    plain = build(dropout=0.0)
    _, found, _ = varied.steps.eval(varied.params, make_batch(), None)
    _, expected, _ = plain.steps.eval(plain.params, make_batch(), None)
    assert np.array_equal(found, expected)
    first, later, again = (jax.tree.map(jnp.copy, varied.state) for _ in range(3))
    later = later.replace(step=later.step + 1)
    losses = [
        float(varied.steps.train(begin, make_batch(), None, varied.settings)[1])
        for begin in (first, later, again)
    ]
    assert losses[0] == losses[2] != losses[1]
    assert losses[0] != float(
        plain.steps.train(plain.state, make_batch(), None, plain.settings)[1]
    )


def test_random_streams_differ_by_name_seed_and_step():
    keys = [
        jax.random.key_data(steps.random_stream(*arguments)).tobytes()
        for arguments in (
            ("dropout", 0, 0),
            ("dropout", 0, 1),
            ("dropout", 1, 0),
            ("shuffle", 0, 0),
        )
    ]
    assert len(set(keys)) == 4
