"""From pictures on disk to rows of a table: decoded in threads, computed in batches.

What cannot be read is a row with the reason. The rows of a block depend on its pictures
alone, not on the blocks before and after it.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from allcls_jax.data.threads import ahead_in_threads
from allcls_jax.errors import InputError
from allcls_jax.serving.model import Cell, Model, failed
from allcls_jax.serving.prediction.inputs import Picture
from allcls_jax.serving.prediction.tables import Row


class Rows:
    """Computes the rows of blocks: pictures are decoded while others are computed."""

    def __init__(self, model: Model, threshold: float, coverage: float):
        """Keeps the arguments; as for `Model.prediction`."""
        self._model = model
        self._threshold = threshold
        self._coverage = coverage

    def of(
        self, blocks: Iterable[tuple[int, Sequence[Picture]]], *, ahead: int
    ) -> Iterator[tuple[int, list[Row]]]:
        """Yields the rows of each block, as `Prediction.to_dict` gives them.

        Args:
          blocks: number and pictures.
          ahead: how many pictures are decoded beyond those that are computed.
        """
        pictures = ((number, one) for number, block in blocks for one in block)
        with ahead_in_threads(self._read, pictures, ahead=ahead) as read:
            for number, block in itertools.groupby(read, key=lambda item: item[0]):
                yield number, self._rows([item[1:] for item in block])

    def _read(
        self, numbered: tuple[int, Picture]
    ) -> tuple[int, Picture, Cell | InputError]:
        number, picture = numbered
        try:
            return number, picture, self._model.read(picture.read(), name=picture.name)
        except InputError as error:
            return number, picture, error

    def _rows(self, read: Sequence[tuple[Picture, Cell | InputError]]) -> list[Row]:
        images = [cell.image for _, cell in read if isinstance(cell, Cell)]
        found = self._model.probabilities(np.stack(images)).tolist() if images else []
        probabilities = iter(found)
        rows = []
        for picture, cell in read:
            if isinstance(cell, Cell):
                row = self._model.prediction(
                    picture.name,
                    cell,
                    next(probabilities),
                    threshold=self._threshold,
                    coverage=self._coverage,
                    patient=picture.patient,
                )
            else:
                row = failed(picture.name, cell, picture.patient)
            rows.append(row.to_dict())
        return rows
