"""The images of a pack as a TFDS dataset in one array_record file; needs no TensorFlow.

Examples are written and read one at a time: memory does not grow with their number.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

# Progress is shown by `terminal`.
tfds.disable_progress_bar()

# TFDS' only split: ours are drawn later, from the table.
_SPLIT = "cells"

Example = dict[str, Any]  # `image`, a PNG, and the columns of `cells.COLUMNS`


def write(directory: Path, examples: Iterable[Example], *, size: int) -> None:
    """Writes the dataset `cells` into a folder.

    Args:
      directory: gets the folder `cells`.
      examples: in the order of the rows to be.
      size: height and width of the images, pixels.

    Raises:
      Exception: what `examples` raises, or TFDS and array_record, which have no common
        type.
    """
    builder = _Cells(size=size, examples=examples, data_dir=str(directory))
    builder.download_and_prepare()


class Records:
    """The dataset in a folder, by row; safe to use from several threads."""

    def __init__(self, directory: Path):
        """Opens what `write` wrote; raises nearly anything where it is damaged."""
        folder = directory / _Cells.name / str(_Cells.VERSION)
        # Any: TFDS' decorators hide the signatures from type checkers.
        builder: Any = tfds.builder_from_directory(str(folder))
        self._raw: Any = builder.as_data_source(
            _SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        # The file is opened at the first use: reading threads would race to do so.
        self._raw[len(self) - 1]

    def __len__(self) -> int:
        return len(self._raw)

    def image(self, row: int) -> bytes:
        """Returns the PNG of a row."""
        # TFDS would decode the whole record, which takes half as long as the image.
        example = _EXAMPLE.FromString(self._raw[row])
        (png,) = example.features.feature["image"].bytes_list.value
        return png


# Any: the classes of generated modules are made when they are imported.
_EXAMPLE: Any = vars(tf_example_pb2)["Example"]


class _Cells(tfds.core.GeneratorBasedBuilder):
    """The TFDS dataset `cells`."""

    name = "cells"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First form."}  # noqa: RUF012 - TFDS' own attribute

    def __init__(self, *, size: int, examples: Iterable[Example], **kwargs: Any):
        self._size = size
        self._examples = examples
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
        size = self._size
        return tfds.core.DatasetInfo(
            builder=self,
            description="Single-cell images, each with its patient.",
            disable_shuffling=True,  # keys are rows: the order is ours
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), encoding_format="png"
                    ),
                    "image_id": text,
                    "patient": text,
                    "label": number,
                    "part": text,
                    "fold": number,
                    "sha256": text,
                    "area": number,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Example]]:
        yield from enumerate(self._examples)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Writes one file, example by example.

        TFDS' own writer keeps up to a gigabyte of examples in memory before it writes
        the first, also where nothing is shuffled.
        """
        del download_config
        info: Any = self.info
        serializer = tfds.core.ExampleSerializer(info.features.get_serialized_info())
        number, size = 0, 0

        def serialized() -> Iterator[tuple[int, bytes]]:
            nonlocal number, size
            for key, example in self._split_generators(dl_manager)[_SPLIT]:
                encoded = info.features.encode_example(example)
                data = serializer.serialize_example(encoded)
                number, size = number + 1, size + len(data)
                yield key, data

        template = tfds.core.ShardedFileTemplate(
            split=_SPLIT,
            dataset_name=self.name,
            data_dir=self.data_path,
            filetype_suffix=info.file_format.file_suffix,
        )
        tfds.core.ExampleWriter(info.file_format).write(
            template.sharded_filepath(shard_index=0, num_shards=1), serialized()
        )
        split = tfds.core.SplitInfo(
            name=_SPLIT,
            shard_lengths=[number],
            num_bytes=size,
            filename_template=template,
        )
        info.set_splits(tfds.core.SplitDict([split]))

    # TFDS would speak of downloads on standard output.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...
