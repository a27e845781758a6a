"""Heads on kept features, many at once: an epoch of all of them is one compiled scan.

A head is what is trained behind the frozen part of a network: dense layers, or upper
blocks as well. Heads know nothing of each other: those of all folds, seeds and settings
go through the same program side by side (`jax.vmap`), divided among the devices where
there are several. A head ends with the parameters that it would have if it were trained
alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.config import OptimConfig, Place, TrainConfig
from allcls_jax.data.cells import ALL, CellTable
from allcls_jax.data.pipeline import PADDING, Order, in_batches, steps_per_epoch
from allcls_jax.models.parts import split_at_learning
from allcls_jax.models.vgg import NUM_CLASSES, VGG, Params, layer_table
from allcls_jax.training import mixing, steps
from allcls_jax.training import state as states
from allcls_jax.training.feed import Feed
from allcls_jax.training.inputs import Features
from allcls_jax.training.network import Network
from allcls_jax.training.optim import make_optimizer, trainable_mask
from allcls_jax.training.state import Sums, TrainState

# Images of a batch where nothing is learnt.
_EVALUATED = 128


@dataclasses.dataclass(frozen=True)
class Head:
    """What one head is trained on, and how.

    Attributes:
      order: of its training images.
      validation: (n,) int64 rows of the table.
      params: of all its layers, before training.
      class_weights: of a HEM and of an ALL image in the loss.
      learning_rate, weight_decay: as of `OptimConfig`.
      dropout: rate, in [0, 1).
      seed: of dropout.
    """

    order: Order
    validation: np.ndarray
    params: Params
    class_weights: tuple[float, float]
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int


class _Settings(NamedTuple):
    """The numbers of a head, as arrays; with an axis of heads where there are many."""

    seed: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    dropout: jax.Array
    class_weights: jax.Array
    steps_per_epoch: jax.Array


class Heads:
    """Heads of one network that are trained together.

    The arrays of a state have an axis of heads in front, unless there is one head.

    Attributes:
      steps_per_epoch: batches of each head that show its training images once.
    """

    def __init__(
        self,
        network: Network,
        optim: OptimConfig,
        heads: Sequence[Head],
        features: Features,
        table: CellTable,
        *,
        train: TrainConfig,
        place: Place,
    ):
        """Brings features to their place; compiles at the first epoch.

        Args:
          network: whose heads they are.
          optim: the rest of the recipe, the same for all.
          heads: at least one; only one where convolutions are trained.
          features: of all rows that the heads use.
          table: labels by row.
          train: resolved; the same for all.
          place: where the features lie; not `auto`.
        """
        assert train.batch_size is not None, "not resolved"
        assert len(heads) == 1 or not network.learns_stack, "slow side by side"
        fixed, model = split_at_learning(network.model, network.mask)
        # In a loop of XLA's, convolutions on a CPU take many times as long.
        self._singly = network.learns_stack and jax.default_backend() == "cpu"
        shapes = layer_table(fixed.layers, features.images.size)
        self._shape = shapes[-1].shape
        self._shares = {name: network.shares[name] for name in heads[0].params}
        self._mask = trainable_mask(self._shares)
        self._heads, self._optim, self._config = tuple(heads), optim, train
        self._batch_size = batch_size = train.batch_size
        self._shardings = shardings = network.shardings
        devices = shardings.replicated.mesh.size
        # As many on each device: the last one stands in for those that are missing.
        self._number = -(-len(heads) // devices) * devices if len(heads) > 1 else 1
        self.steps_per_epoch = [
            steps_per_epoch(len(head.order.rows), batch_size) for head in heads
        ]
        self._feed = Feed(features, table, shardings, place, many=self._number > 1)
        settings = [
            _Settings(
                seed=jnp.uint32(head.seed),
                learning_rate=jnp.float32(head.learning_rate),
                weight_decay=jnp.float32(head.weight_decay),
                dropout=jnp.float32(head.dropout),
                class_weights=jnp.array(head.class_weights, jnp.float32),
                steps_per_epoch=jnp.float32(steps),
            )
            for head, steps in zip(heads, self.steps_per_epoch, strict=True)
        ]
        self._settings = self._put(self._stack(settings))
        self._compile(model)
        validation = [head.validation for head in heads]
        self._validation = self._positions(validation, max(batch_size, _EVALUATED))

    def begin(self) -> TrainState:
        """Returns the state before the first step."""
        optimizer = make_optimizer(self._optim, self._shares)
        averaged = bool(self._optim.ema)
        begun = [
            states.create(head.params, optimizer, self._mask, averaged=averaged)
            for head in self._heads
        ]
        # Copied, for the state is used up in training and parameters are shared.
        return self._put(self._stack([jax.tree.map(np.array, one) for one in begun]))

    def epoch(self, state: TrainState, number: int) -> TrainState:
        """Returns the state behind an epoch's last step; the old one is used up.

        Args:
          state: before the epoch.
          number: of the epoch, from 0.
        """
        drawn = [head.order.epoch(number) for head in self._heads]
        order = self._positions(
            [rows for rows, _ in drawn], self._batch_size, [views for _, views in drawn]
        )
        for features, label, batches in self._fed(order):
            state = self._train(state, self._settings, features, label, batches)
        return state

    def running(self, state: TrainState) -> list[bool]:
        """Returns which heads go on, and have not stopped early, after an epoch."""
        pairs = self.per_head((state.step, state.best.step))
        return [
            bool(_running(step, best, steps, self._config.patience))
            for (step, best), steps in zip(pairs, self.steps_per_epoch, strict=True)
        ]

    def conclude(self, state: TrainState) -> tuple[TrainState, tuple[Sums, Sums]]:
        """Validates, notes the best, and begins the sums anew.

        Returns:
          The state before the next epoch, and the sums of training and validation.
        """
        validation: Sums | None = None
        params = state.used()
        for features, label, batches in self._fed(self._validation):
            sums, _ = self._evaluate(params, features, label, batches)
            validation = sums if validation is None else validation + sums
        assert validation is not None, "nothing to validate on"
        return self._conclude(state, validation)

    def probabilities(
        self, params: Params, rows: Sequence[np.ndarray], views: int = 1
    ) -> list[dict[int, float]]:
        """Returns P(ALL) of the rows of each head, by row.

        Args:
          params: of all layers of the heads.
          rows: for each head, (n,) int64 rows of the table.
          views: of each, whose logits are averaged: 1, or as many as there are
            features of.
        """
        order = self._positions(
            [np.repeat(chosen, views) for chosen in rows],
            max(self._batch_size, _EVALUATED) // views * views,
            [np.tile(np.arange(views), len(chosen)) for chosen in rows],
        )
        evaluate = self._evaluate if views == 1 else self._evaluate_views(views)
        parts = []
        for features, label, batches in self._fed(order):
            _, probability = evaluate(params, features, label, batches)
            parts.append(np.asarray(probability))
        # (heads, steps, batch) in one head's order.
        whole = np.concatenate(parts, axis=-2)
        whole = whole.reshape(self._number, -1)
        return [
            dict(zip(chosen.tolist(), values.tolist(), strict=False))
            for chosen, values in zip(rows, whole, strict=False)
        ]

    def of_head(self, tree: Any, number: int) -> Any:
        """Returns what a tree of arrays holds of one head, on every device."""
        return tree if self._number == 1 else self._take(tree, number)

    def per_head(self, tree: Any) -> list[Any]:
        """Returns small arrays of all heads as NumPy's, head by head."""
        if self._number == 1:
            return [jax.tree.map(np.asarray, tree)]
        whole = jax.tree.map(np.asarray, self._gather(tree))
        return [
            jax.tree.map(lambda array, i=i: array[i], whole)
            for i in range(len(self._heads))
        ]

    def _fed(
        self, order: np.ndarray
    ) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        """Yields what the feed does, one batch at a time if need be."""
        for features, label, batches in self._feed(order):
            parts = jnp.split(batches, len(batches)) if self._singly else [batches]
            yield from ((features, label, part) for part in parts)

    def _compile(self, model: VGG) -> None:
        """Makes the compiled functions: of one head, and then of all."""
        optim, mask, shares, config = (
            self._optim,
            self._mask,
            self._shares,
            self._config,
        )
        shape = self._shape
        assert config.num_epochs is not None, "not resolved"
        num_epochs = config.num_epochs

        def train(
            state: TrainState,
            settings: _Settings,
            features: jax.Array,
            label: jax.Array,
            batches: jax.Array,
        ) -> TrainState:
            going_on = _running(
                state.step, state.best.step, settings.steps_per_epoch, config.patience
            )

            def step(
                state: TrainState, positions: jax.Array
            ) -> tuple[TrainState, None]:
                valid = (positions != PADDING).astype(jnp.float32)
                key = steps.random_stream("mixup", settings.seed, state.step)
                mixed = mixing.draw(key, valid, config.mixup)
                values = mixing.mix(features[positions].reshape(-1, *shape), mixed)

                def objective(params: Params) -> tuple[jax.Array, Sums]:
                    key = steps.random_stream("dropout", settings.seed, state.step)
                    logits, _ = model.apply(
                        {"params": params},
                        values,
                        train=True,
                        dropout=settings.dropout,
                        rngs={"dropout": key},
                    )
                    return steps.mean_loss(
                        logits,
                        label[positions],
                        valid,
                        settings.class_weights,
                        smoothing=config.label_smoothing,
                        mixed=mixed,
                    )

                pace = steps.Pace(
                    settings.learning_rate,
                    settings.weight_decay,
                    settings.steps_per_epoch,
                    num_epochs * settings.steps_per_epoch,
                )
                new, _ = steps.update(state, objective, optim, shares, pace)
                # Where a head has fewer batches than another one, or fewer epochs, it
                # waits.
                real = (positions[0] != PADDING) & going_on
                kept = jax.tree.map(lambda a, b: jnp.where(real, a, b), new, state)
                return kept, None

            return _scan(step, state, batches)[0]

        def evaluate(
            params: Params,
            features: jax.Array,
            label: jax.Array,
            batches: jax.Array,
            *,
            views: int,
        ) -> tuple[Sums, jax.Array]:
            def step(sums: Sums, positions: jax.Array) -> tuple[Sums, jax.Array]:
                values = features[positions].reshape(-1, *shape)
                logits, _ = model.apply({"params": params}, values)
                if views > 1:
                    positions = positions[::views]
                    logits = logits.reshape(-1, views, NUM_CLASSES).mean(1)
                valid = (positions != PADDING).astype(jnp.float32)
                _, more = steps.mean_loss(logits, label[positions], valid, jnp.ones(2))
                return sums + more, jax.nn.softmax(logits)[:, ALL]

            return _scan(step, states.zero_sums(), batches)

        one = self._shardings.replicated
        each = one if self._number == 1 else self._shardings.batch
        over: Callable[..., Any] = jax.vmap if self._number > 1 else lambda f, *_: f
        self._train = jax.jit(
            over(train, (0, 0, None, None, 0)),
            in_shardings=(each, each, one, one, each),
            out_shardings=each,
            donate_argnums=0,
        )

        def compiled(views: int) -> Callable[..., tuple[Sums, jax.Array]]:
            return jax.jit(
                over(functools.partial(evaluate, views=views), (0, None, None, 0)),
                in_shardings=(each, one, one, each),
                out_shardings=(each, one),
            )

        self._evaluate = compiled(1)
        self._evaluate_views = functools.cache(compiled)
        self._gather = jax.jit(lambda tree: tree, out_shardings=one)
        self._take = jax.jit(
            lambda tree, number: jax.tree.map(lambda array: array[number], tree),
            out_shardings=one,
        )
        self._conclude = jax.jit(
            over(lambda state, sums: states.conclude(state, sums, mask), (0, 0)),
            in_shardings=(each, each),
            out_shardings=(each, one),
            donate_argnums=0,
        )

    def _positions(
        self,
        rows: Sequence[np.ndarray],
        batch_size: int,
        views: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Returns where features of each head's rows stand: (heads, steps, batch)."""
        if views is None:
            views = [np.zeros(len(chosen), np.int32) for chosen in rows]
        batches = [
            in_batches(self._feed.positions(chosen, turned), batch_size, PADDING)
            for chosen, turned in zip(rows, views, strict=True)
        ]
        longest = max(map(len, batches))
        padded = np.full((self._number, longest, batch_size), PADDING, np.int32)
        for i, found in enumerate(batches):
            padded[i, : len(found)] = found
        return padded

    def _stack(self, trees: Sequence[Any]) -> Any:
        if self._number == 1:
            return trees[0]
        trees = [*trees, *[trees[-1]] * (self._number - len(trees))]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def _put(self, tree: Any) -> Any:
        """Brings arrays of all heads to the devices, each to its own."""
        if self._number == 1:
            return self._shardings.put_replicated(tree)
        return self._shardings.put_divided(tree)


def _running(
    step: jax.Array,
    best: jax.Array,
    steps_per_epoch: jax.Array | int,
    patience: int | None,
) -> jax.Array:
    """Returns whether a head has not stopped; asked between epochs, () bool."""
    most = jnp.inf if patience is None else patience * steps_per_epoch
    return step - best < most


def _scan(step: Callable[..., Any], begin: Any, batches: jax.Array) -> tuple[Any, Any]:
    """Returns what `jax.lax.scan` does; without a loop where there is one batch."""
    if len(batches) > 1:
        return jax.lax.scan(step, begin, batches)
    end, output = step(begin, batches[0])
    return end, jax.tree.map(lambda array: array[None], output)
