"""Heads on kept features: those of the whole network, however many and wherever."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import (
    Config,
    DataConfig,
    HeadKind,
    ModelName,
    OptimConfig,
    OptimizerName,
    Place,
    Schedule,
    SyntheticConfig,
    TrainConfig,
)
from allcls_jax.data import pipeline
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.pipeline import Order, PackedImages, Reading
from allcls_jax.data.prepare import open_cells
from allcls_jax.models import parts
from allcls_jax.models.preprocessing import CAFFE
from allcls_jax.training import feed as feeds
from allcls_jax.training import heads, inputs, network, optim, sharding, state, steps
from allcls_jax.training import whole as wholes

SIZE, BATCH = 32, 8
ROWS = np.arange(40)
VALIDATION = np.arange(40, 51)
ADAMW = OptimConfig(name=OptimizerName.ADAMW, weight_decay=0.1, clip_norm=1.0)
SCHEDULED = dataclasses.replace(
    ADAMW,
    schedule=Schedule.COSINE,
    warmup=0.5,
    ema=0.8,
    trainable=((r"block.*", False), (r"dense_2/.*", 0.3), (r"dense_3/.*", True)),
)
# Two convolutions, of which one is frozen, and kept features of block 3.
BLOCKS = dataclasses.replace(
    SCHEDULED,
    trainable=((r"block[1235].*", False), (r"block4.*", 0.3), (r"dense.*", True)),
)


@dataclasses.dataclass
class Given:
    """Cells, a network, and features of both."""

    cells: PackedCells
    images: PackedImages
    network: network.Network
    features: inputs.Features
    config: Config


def give(
    folder: Path,
    *,
    dihedral: bool = False,
    optimizer=ADAMW,
    smoothing=0.0,
    mixup=0.0,
) -> Given:
    config = Config(
        cache_dir=str(folder),
        data=DataConfig(
            image_size=SIZE,
            synthetic=SyntheticConfig(num_images=60, num_patients=12),
        ),
        optim=optimizer,
    )
    config.model.name, config.model.weights = ModelName.TINY, "random"
    config.augment.dihedral = dihedral
    config.train.label_smoothing, config.train.mixup = smoothing, mixup
    cells = open_cells(config.data, pack_size=SIZE, cache_dir=folder)
    built = network.build(config, cells.source, cache_dir=folder)
    images = PackedImages(cells, None, SIZE)
    found = inputs.compute_features(config, images, cells.table, np.arange(60), built)
    assert found is not None
    return Given(cells, images, built, found, config)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return give(tmp_path_factory.mktemp("heads"))


def head(given: Given, **changes) -> heads.Head:
    params = given.network.learning_params(0)
    plain = heads.Head(
        order=Order(ROWS, 0, dihedral=given.config.augment.dihedral),
        validation=VALIDATION,
        params=params,
        class_weights=(1.0, 1.0),
        learning_rate=1e-3,
        weight_decay=0.1,
        dropout=0.5,
        seed=0,
    )
    return dataclasses.replace(plain, **changes)


def train(
    given: Given, *chosen: heads.Head, epochs=3, place=Place.DEVICE
) -> tuple[heads.Heads, state.TrainState, list[Any]]:
    """Trains, and returns the last state and each epoch's sums of each head."""
    found = heads.Heads(
        given.network,
        given.config.optim,
        chosen,
        given.features,
        given.cells.table,
        train=dataclasses.replace(
            given.config.train, batch_size=BATCH, num_epochs=epochs
        ),
        place=place,
    )
    now, sums = found.begin(), []
    for epoch in range(epochs):
        now, of_epoch = found.conclude(found.epoch(now, epoch))
        sums.append(found.per_head(of_epoch))
    return found, now, sums


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Holds every array to a relative L2 distance."""
    one, other = flat(found), flat(expected)
    assert one.keys() == other.keys()
    for name, array in other.items():
        distance = np.linalg.norm((one[name] - array).astype(np.float64))
        assert distance <= tolerance * np.linalg.norm(array), name


@pytest.mark.parametrize(
    ("optimizer", "dihedral", "smoothing", "mixup"),
    [
        (ADAMW, False, 0.0, 0.0),
        (ADAMW, True, 0.0, 0.4),
        (SCHEDULED, False, 0.2, 0.0),
        (BLOCKS, True, 0.2, 0.4),
    ],
    ids=["plain", "views-mixed", "scheduled", "blocks-mixed"],
)
def test_the_whole_network_with_masked_updates_gives_the_same_head(
    tmp_path, optimizer, dihedral, smoothing, mixup
):
    given = give(
        tmp_path,
        dihedral=dihedral,
        optimizer=optimizer,
        smoothing=smoothing,
        mixup=mixup,
    )
    built, config = given.network, given.config
    weights = (0.7, 1.6)
    _, now, sums = train(given, head(given, class_weights=weights))

    recipe = dataclasses.replace(config.optim, learning_rate=1e-3)
    optimizer = optim.make_optimizer(recipe, built.shares)
    compiled = steps.make_steps(
        built.model,
        built.preprocessing,
        recipe,
        built.shares,
        built.shardings,
        augment=config.augment,
        train=config.train,
    )
    reading = Reading(batch_size=BATCH)
    direct = wholes.Whole(
        steps=compiled,
        shardings=built.shardings,
        images=given.images,
        resident=None,
        table=given.cells.table,
        order=Order(ROWS, 0, dihedral=dihedral),
        validation=VALIDATION,
        settings=steps.RunSettings(
            np.uint32(0),
            np.array(weights, np.float32),
            np.float32(5),
            np.float32(15),
        ),
        training=reading,
        evaluating=reading,
    )
    params = jax.tree.map(jnp.copy, built.params)
    other = state.create(params, optimizer, built.mask, averaged=bool(recipe.ema))
    batches = direct.batches(0)
    for epoch in range(3):
        for _ in range(5):
            other, _ = direct.step(other, next(batches))
        other, of_epoch = direct.conclude(other)
        for found, expected in zip(sums[epoch][0], of_epoch, strict=True):
            assert float(found.count) == float(expected.count)
            assert float(found.correct) == pytest.approx(float(expected.correct))
            loss = float(expected.loss / expected.count)
            np.testing.assert_allclose(float(found.loss / found.count), loss, rtol=1e-5)
    moved = optim.trainable(other.params, built.mask)
    assert_same(optim.trainable(now.params, built.mask), moved)
    assert_same(now.best.params, other.best.params)
    assert_same(now.average, other.average)
    moments = [leaf for leaf in jax.tree.leaves(other.opt_state) if leaf.ndim]
    found = [leaf for leaf in jax.tree.leaves(now.opt_state) if leaf.ndim]
    for one, two in zip(found, moments, strict=True):
        assert_same(one, two)
    assert int(now.step) == int(other.step) == 15


def variants(given: Given) -> list[heads.Head]:
    """Heads that differ in seed, images, settings and beginning."""
    params = given.network.learning_params(0)
    moved = jax.tree.map(lambda a: a * 0.9, params)
    return [
        head(given),
        head(given, order=Order(ROWS[:19], 1), seed=2**32 - 1, dropout=0.2),
        head(given, learning_rate=3e-3, weight_decay=0.0, params=moved),
        head(given, class_weights=(0.5, 2.0), validation=np.arange(51, 58)),
        head(given, order=Order(ROWS[5:38], 4), dropout=0.0),
    ]


def test_heads_side_by_side_are_those_trained_alone(given):
    chosen = variants(given)
    together, now, sums = train(given, *chosen)
    assert together.steps_per_epoch == [5, 3, 5, 5, 5]
    rows = [np.arange(50, 50 + i) for i in range(5, 10)]
    probabilities = together.probabilities(now.params, rows)
    for i, one in enumerate(chosen):
        alone, expected, of_alone = train(given, one)
        assert_same(together.of_head(now, i), expected)
        assert int(expected.step) == 3 * together.steps_per_epoch[i]
        for epoch in range(3):
            for use in range(2):
                assert_same(sums[epoch][i][use], of_alone[epoch][0][use], 1e-5)
        (found,) = alone.probabilities(expected.params, [rows[i]])
        assert list(probabilities[i]) == list(found) == rows[i].tolist()
        np.testing.assert_allclose(
            list(probabilities[i].values()), list(found.values()), atol=1e-5
        )
    apart = [flat(together.of_head(now.params, i)) for i in range(5)]
    for one in apart[1:]:
        name = "['dense_2']['kernel']"
        assert np.linalg.norm(one[name] - apart[0][name]) > 1e-2


def test_a_head_that_has_no_batches_left_waits(given):
    """Beside one with twice its images; Adam would move it even without a gradient."""
    short = head(given, order=Order(ROWS[:17], 3))
    _, now, _ = train(given, head(given), short, epochs=1)
    assert np.asarray(now.step)[:2].tolist() == [5, 3]


@pytest.mark.parametrize("place", [Place.HOST, Place.DISK])
def test_where_features_lie_changes_nothing(given, place, monkeypatch):
    chosen = variants(given)
    _, expected, of_device = train(given, *chosen)
    # Two of the five batches at a time, so that the last piece is filled up.
    row = given.features.store.shape[0] * 4
    monkeypatch.setattr(feeds, "_CHUNK", 2 * len(chosen) * BATCH * row)
    together, now, sums = train(given, *chosen, place=place)
    assert_same(now, expected, 1e-6)
    assert_same(sums, of_device, 1e-6)
    one = together.probabilities(now.params, [VALIDATION] * 5)
    assert [list(found) for found in one] == [VALIDATION.tolist()] * 5


def test_an_epoch_is_compiled_once(given, monkeypatch):
    together: Any
    together, now, _ = train(given, *variants(given), epochs=4)
    together.probabilities(now.params, [VALIDATION] * 5)
    for compiled in (together._train, together._conclude):
        assert compiled._cache_size() == 1
    # Validation and prediction differ in their number of batches.
    assert together._evaluate._cache_size() <= 2


def test_a_state_given_back_goes_on_as_it_was(given):
    chosen = variants(given)
    _, expected, _ = train(given, *chosen, epochs=4)
    _, now, _ = train(given, *chosen, epochs=2)
    kept = jax.tree.map(np.array, now)
    again, _, _ = train(given, *chosen, epochs=0)
    now = again._put(kept)
    for epoch in (2, 3):
        now, _ = again.conclude(again.epoch(now, epoch))
    for name, array in flat(expected).items():
        assert np.array_equal(flat(now)[name], array), name


def test_training_leaves_the_network_as_it_was(given):
    before = {name: a.tobytes() for name, a in flat(given.network.params).items()}
    train(given, head(given))
    train(given, head(given), head(given, seed=1))
    for name, array in flat(given.network.params).items():
        assert array.tobytes() == before[name], name


@pytest.mark.parametrize("kind", [OptimizerName.ADAM, OptimizerName.SGD])
def test_every_optimizer_takes_each_heads_own_rate(tmp_path, kind):
    given = give(tmp_path, optimizer=OptimConfig(name=kind))
    chosen = [
        head(given, learning_rate=rate, weight_decay=0.0) for rate in (1e-5, 1e-4)
    ]
    together, now, _ = train(given, *chosen, epochs=1)
    for i, one in enumerate(chosen):
        _, expected, _ = train(given, one, epochs=1)
        assert_same(together.of_head(now.params, i), expected.params)


def test_a_head_that_finds_nothing_better_stops_and_the_others_go_on(given):
    """A rate beyond reason makes the validation loss rise soon."""
    patient = dataclasses.replace(
        given, config=dataclasses.replace(given.config, train=TrainConfig(patience=2))
    )
    wild = head(given, learning_rate=0.3)
    calm = head(given, learning_rate=1e-4, dropout=0.0, validation=ROWS)
    many, now, _ = train(patient, wild, calm, epochs=8)
    steps_done, best = np.asarray(now.step), np.asarray(now.best.step)
    assert steps_done[0] == best[0] + 2 * 5 < 40
    assert steps_done[1] == 40
    assert many.running(now) == [False, True]
    # As if it had been told to stop there, and as it was without the other one.
    _, expected, _ = train(given, wild, epochs=int(steps_done[0]) // 5)
    assert_same(many.of_head(now, 0), expected)
    alone, one, _ = train(patient, wild, epochs=8)
    assert_same(one, expected)
    assert alone.running(one) == [False]


def test_a_part_of_the_head_can_be_frozen(tmp_path):
    rules = ((r"block.*", False), (r"dense_2/.*", False), (r"dense_3/.*", True))
    given = give(tmp_path, optimizer=OptimConfig(trainable=rules))
    _, now, _ = train(given, head(given, weight_decay=0.0))
    before = flat(given.network.params)
    for name, array in flat(now.params).items():
        assert np.array_equal(array, before[name]) == ("dense_2" in name)
    assert list(now.best.params) == ["dense_3"]


def test_copies_and_identical_images_are_computed_once(tmp_path):
    given = give(tmp_path)
    # The same cells once more, in other rows: everything is there.
    rows = np.arange(60)[::-1]
    kept = given.features.store
    keys = given.features.keys(rows, np.zeros(60, np.int32))
    assert not len(kept.missing(keys))
    expected = given.network
    backbone, _ = parts.split_at_features(expected.model)
    images = np.stack([given.images[int(row)] for row in rows[:4]])
    values, _ = backbone.apply({"params": expected.params}, CAFFE(images))
    np.testing.assert_allclose(
        given.features.read(rows[:4]), values, rtol=1e-4, atol=1e-4
    )


def test_images_that_vary_beyond_flips_have_no_features(tmp_path):
    given = give(tmp_path)
    given.config.augment.rotation = 10.0
    found = inputs.compute_features(
        given.config, given.images, given.cells.table, ROWS, given.network
    )
    assert found is None


def test_pooled_heads_train_too(tmp_path):
    config = give(tmp_path).config
    config.model.head = HeadKind.GAP
    cells = open_cells(config.data, pack_size=SIZE, cache_dir=tmp_path)
    built = network.build(config, cells.source, cache_dir=tmp_path)
    images = PackedImages(cells, None, SIZE)
    found = inputs.compute_features(config, images, cells.table, np.arange(60), built)
    assert found is not None
    given = Given(cells, images, built, found, config)
    _, _, sums = train(given, head(given, learning_rate=1e-2), epochs=8)
    assert float(sums[-1][0][0].loss) < float(sums[0][0][0].loss)


def test_a_batch_of_heads_is_divided_among_devices():
    assert sharding.data_parallel().replicated.mesh.size == jax.device_count()


def test_the_table_tells_labels_of_every_view(tmp_path):
    given = give(tmp_path, dihedral=True)
    feed = feeds.Feed(
        given.features,
        given.cells.table,
        given.network.shardings,
        Place.DEVICE,
        many=False,
    )
    rows, views = np.array([3, 40]), np.array([7, 2], np.int32)
    ((values, label, _),) = feed(np.zeros((1, 1, 2), np.int32))
    positions = feed.positions(rows, views)
    assert np.array_equal(np.asarray(label)[positions], given.cells.table.label[rows])
    expected = given.features.store.read(given.features.keys(rows, views))
    assert np.array_equal(np.asarray(values)[positions], expected)
    assert len(values) == pipeline.NUM_VIEWS * 60
