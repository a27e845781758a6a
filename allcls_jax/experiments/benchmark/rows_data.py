"""Rows of what happens before a network sees an image: decode, pack, audit."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from allcls_jax.config import DataSource, OnBadImage
from allcls_jax.data import findings, readers, synthetic, transforms
from allcls_jax.data.cells import CellFile
from allcls_jax.data.packing import pack
from allcls_jax.experiments.benchmark import bench as benches
from allcls_jax.experiments.benchmark import recipe, timing
from allcls_jax.experiments.benchmark.bench import Bench
from allcls_jax.experiments.benchmark.peer_networks import cores
from allcls_jax.experiments.benchmark.peer_tools import DECODE
from allcls_jax.experiments.benchmark.record import Row

_PEERS = tuple(DECODE)


def packing(bench: Bench) -> Iterator[Row]:
    """Yields decoding and resizing against the peers, and all of packing."""
    source, cells, what = _cells(bench)
    size, number = bench.sizes.image_size, len(cells)
    settings = f"{number:,} {what} to {size} px, {cores()} cores"
    files = _as_files(bench, cells)
    data = [path.read_bytes() for path in files]

    def one(content: bytes) -> np.ndarray:
        return transforms.resize(transforms.decode(content, name="a cell"), size)

    def every() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(one, data):
                pass

    given = {"task": "decode", "files": [str(path) for path in files], "size": size}
    ours, peers = benches.side_by_side(
        every,
        {name: {**given, "peer": name} for name in _PEERS},
        times=1,
        repeats=bench.sizes.repeats,
        count=number,
    )
    yield bench.row(
        "decoding",
        settings=settings,
        unit="images/s",
        ours=ours,
        peers=peers,
        against=benches.fastest(peers, _PEERS),
    )

    def packed() -> None:
        pack(
            cells,
            bench.new_folder("packed"),
            source=source,
            size=size,
            crop=None,
            on_bad_image=OnBadImage.ERROR,
        )

    taken = [timing.seconds(packed) for _ in range(bench.sizes.repeats)]
    yield bench.row(
        "packing",
        settings=settings,
        unit="images/s",
        ours=timing.figure(taken, count=number),
    )


def audit(bench: Bench) -> Iterator[Row]:
    """Yields images per second of the search for broken files and twins."""
    _, cells, what = _cells(bench)
    # A few times only: it is as long as all other data rows together.
    taken = [timing.seconds(lambda: findings.find(cells)) for _ in range(3)]
    yield bench.row(
        "audit",
        settings=f"{len(cells):,} {what}, {cores()} cores",
        unit="images/s",
        ours=timing.figure(taken, count=len(cells)),
    )


def _cells(bench: Bench) -> tuple[DataSource, list[CellFile], str]:
    """Returns files of cells, and what to call them."""
    number = bench.sizes.files
    if bench.data is not None:
        source, cells = readers.open_source(None, bench.data)
        return source, _some(cells, number), "real cells"
    folder = bench.folder / "drawn"
    if not folder.exists():
        drawn = _some(synthetic.cells(recipe.synthetic(max(number, 16))), number)
        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(lambda cell: _draw(cell, folder), drawn):
                pass
    source, cells = readers.open_source(DataSource.FOLDER, folder)
    return source, list(cells), f"drawn PNG files of {synthetic.SIZE} px"


def _some(cells: Sequence[CellFile], number: int) -> list[CellFile]:
    """Returns so many cells, evenly from all patients."""
    return list(cells[:: max(len(cells) // number, 1)][:number])


def _draw(cell: CellFile, folder: Path) -> None:
    label = "all" if cell.label else "hem"
    path = folder / label / cell.patient / f"{cell.image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cell.source.read())


def _as_files(bench: Bench, cells: Sequence[CellFile]) -> list[Path]:
    """Returns the encoded pictures as files of their own, wherever they come from."""
    folder = bench.new_folder("encoded")
    found = []
    for number, cell in enumerate(cells):
        found.append(folder / str(number))
        found[-1].write_bytes(cell.source.read())
    return found
