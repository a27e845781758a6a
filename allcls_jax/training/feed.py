"""Features on their way to the heads: all on the devices, or sent piece by piece."""

from collections.abc import Iterator

import jax
import numpy as np

from allcls_jax.config import Place
from allcls_jax.data.cells import CellTable
from allcls_jax.data.pipeline import PADDING, read_ahead
from allcls_jax.training.inputs import Features
from allcls_jax.training.sharding import Shardings

# Bytes of features that are sent at a time, where they do not lie on the devices.
_CHUNK = 256 * 2**20


class Feed:
    """Batches of features on the devices, from wherever features lie."""

    def __init__(
        self,
        features: Features,
        table: CellTable,
        shardings: Shardings,
        place: Place,
        *,
        many: bool,
    ):
        """Reads the features, unless they stay on disk.

        Args:
          features: of all rows that are asked for.
          table: labels by row.
          shardings: where arrays go.
          place: where features lie; not `auto`.
          many: whether there are several heads, to be divided among the devices.
        """
        assert place is not Place.AUTO, "chosen before"
        self._rows = np.sort(features.rows)
        self._num_views = features.num_views
        every = np.repeat(self._rows, self._num_views)
        views = np.tile(np.arange(self._num_views), len(self._rows))
        self._keys = features.keys(every, views)
        self._label = table.label[every].astype(np.int32)
        self._store = features.store
        self._shardings, self._many = shardings, many
        self._held: np.ndarray | None = None
        self._resident: tuple[jax.Array, jax.Array] | None = None
        if place is not Place.DISK:
            self._held = self._store.read(self._keys)
        if place is Place.DEVICE:
            self._resident = shardings.put_replicated((self._held, self._label))
            self._held = None

    def positions(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Returns where the features of rows (n,) in views (n,) stand: (n,) int32."""
        found = np.searchsorted(self._rows, rows)
        assert np.array_equal(self._rows[found], rows), "not all rows have features"
        return (found * self._num_views + views).astype(np.int32)

    def __call__(
        self, order: np.ndarray
    ) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        """Yields features, their labels, and batches of positions in them.

        Args:
          order: (heads, steps, batch) int32, -1 for padding.

        Yields:
          (n, m), (n,) int32 and (heads, k, batch) int32, or (k, batch) for one head;
          the same n and k each time, and all steps in the end.
        """
        if self._resident is not None:
            yield *self._resident, self._put(order)
            return
        heads, _, batch = order.shape
        row_bytes = self._store.dtype.itemsize * self._store.shape[0]
        length = max(1, min(order.shape[1], _CHUNK // (heads * batch * row_bytes)))
        number = -(-order.shape[1] // length)
        for values, label, local in read_ahead(
            lambda i: self._chunk(order[:, i * length : (i + 1) * length], length),
            number,
        ):
            yield *self._shardings.put_replicated((values, label)), self._put(local)

    def _chunk(
        self, order: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what some steps need, filled up to as many as all have."""
        heads, _, batch = order.shape
        used, local = np.unique(order, return_inverse=True)
        begin = int(np.searchsorted(used, 0))  # behind the padding, if there is some
        used = used[begin:]
        values = np.zeros(
            (heads * length * batch, *self._store.shape), self._store.dtype
        )
        if self._held is not None:
            np.take(self._held, used, axis=0, out=values[: len(used)])
        else:
            values[: len(used)] = self._store.read([self._keys[i] for i in used])
        label = np.zeros(len(values), np.int32)
        label[: len(used)] = self._label[used]
        filled = np.full((heads, length, batch), PADDING, np.int32)
        local = local.reshape(order.shape) - begin  # so that padding becomes -1
        filled[:, : order.shape[1]] = local
        return values, label, filled

    def _put(self, order: np.ndarray) -> jax.Array:
        if self._many:
            return self._shardings.put_divided(order)
        return self._shardings.put_replicated(order[0])
