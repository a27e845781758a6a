"""From pictures and a model to a folder of maps, with what speaks against them.

A map is never shown without how much of it lies beside the cell and whether maps change
when the weights become random. The folder appears whole or not at all.
"""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, __version__, terminal
from allcls_jax.atomic import write_json
from allcls_jax.data.threads import ahead_in_threads
from allcls_jax.errors import InputError
from allcls_jax.serving.explanation import pictures, words
from allcls_jax.serving.explanation.attribution import Advance, Maps, attribute
from allcls_jax.serving.explanation.checks import (
    SanityCheck,
    cell_mask,
    completeness,
    is_constant,
    mean_of_known,
    num_stages,
    overall_error,
    sanity_check,
    shares_on_cell,
)
from allcls_jax.serving.explanation.folder import (
    GRID_FILE,
    MAPS_FILE,
    RECORD_FILE,
    check_fixed,
    new_folder,
)
from allcls_jax.serving.explanation.settings import Method, Settings
from allcls_jax.serving.model import Cell, Model, Prediction, failed
from allcls_jax.serving.out_folder import check_out, pictures_outside, unique_stem
from allcls_jax.serving.prediction.inputs import Picture, write_list

LIMIT = 36

# Images that are in the memory, with their maps, at a time; read ahead of the network.
_CHUNK, _AHEAD = 32, 8


class Target(enum.StrEnum):
    """Whose log odds are explained."""

    ALL = "ALL"
    HEM = "HEM"
    DECISION = "decision"  # of the class that the image is called


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to do.

    Attributes:
      settings: the method.
      target: the class explained.
      threshold: name or number; None: the model's own.
      limit: most images to explain, at least 1.
      sanity_images: for the sanity check; 0 leaves it out; None: as long as it takes.
      sanity_draws: of random weights, at least 1; None: as long as it takes.
      batch_size: images, or patches of occlusion, in the memory at a time.
      save_maps: whether the numbers are kept too.
      overwrite: whether the folder may hold something.
    """

    settings: Settings
    target: Target = Target.DECISION
    threshold: str | None = None
    limit: int = LIMIT
    sanity_images: int | None = None
    sanity_draws: int | None = None
    batch_size: int = 4
    save_maps: bool = False
    overwrite: bool = False

    @property
    def sanity(self) -> tuple[int, int]:
        """How many images and draws the sanity check has."""
        # The latter two methods take a hundred times as long.
        slow = self.settings.method.signed
        images, draws = self.sanity_images, self.sanity_draws
        return (
            (2 if slow else 4) if images is None else images,
            (1 if slow else 3) if draws is None else draws,
        )

    def check(self) -> None:
        """Raises InputError for what cannot be."""
        for name, value, least in (
            ("limit", self.limit, 1),
            ("batch_size", self.batch_size, 1),
            ("sanity_images", self.sanity[0], 0),
            ("sanity_draws", self.sanity[1], 1),
        ):
            if value < least:
                raise InputError(
                    f"--{name}={value}: must be at least {least}; give another"
                )


def explain(
    model: Model, paths: Sequence[str], out: Path, options: Options
) -> dict[str, Any]:
    """Writes pictures of maps, and what is known of them.

    `out` gets, for each image, `<name of its file>.png`; `grid.png` of the first 36;
    `explain.json`; and `maps.npz` if asked for: `image` (n,) names and `map` (n, s, s)
    float32. An explanation that is there already is replaced, other files stay;
    pictures below `out` are left out.

    Args:
      model: an opened one.
      paths: images, folders, zips, patterns, csv files.
      out: the folder.
      options: what to do.

    Returns:
      The content of `explain.json`.

    Raises:
      InputError: if an option or path cannot be used, the folder is not empty, a file
        in it that is no explanation's would be replaced, or no image could be read.
      OSError: if the folder cannot be written.
    """
    options.check()
    options.settings.check(model.classifier.image_size)
    settings = options.settings.in_network(model.classifier.model.layers)
    options = dataclasses.replace(options, settings=settings)
    check_out(out, overwrite=options.overwrite)
    check_fixed(out)
    threshold = model.threshold(options.threshold)
    with new_folder(out) as (folder, hidden):
        listed = write_list(paths, hidden / "images.jsonl", block_size=_CHUNK)
        count, images = pictures_outside(listed, out)
        job = _Job(model, options, threshold, folder, count)
        with terminal.track("explaining", job.most, "images") as advance:
            for chunk in job.chunks(images, advance):
                job.work(chunk, advance)
        if job.sanity is None:
            reasons = "; ".join(row.error or "" for row in job.failed[:3])
            raise InputError(
                f"{' '.join(paths)}: none of {count:,} images could be read "
                f"({reasons}); give pictures of cells"
            )
        record = job.record()
        job.write(record)
    words.tell(record, out)
    return record


class _Job:
    """Images of one command, chunk by chunk."""

    def __init__(
        self,
        model: Model,
        options: Options,
        threshold: float,
        folder: Path,
        count: int,
    ) -> None:
        self.most = min(count, options.limit)  # images that may be explained
        self.sanity: SanityCheck | None = None  # done with the first chunk
        self.failed: list[Prediction] = []
        self._model = model
        self._options = options
        self._threshold = threshold
        self._folder = folder
        self._count = count
        self._left_out = 0
        self._taken = {Path(GRID_FILE).stem}
        self._rows: list[dict[str, Any]] = []
        self._in_grid: list[pictures.Explained] = []
        self._maps: list[np.ndarray] = []

    def chunks(
        self, every: Iterator[Picture], advance: Advance
    ) -> Iterator[list[tuple[Picture, Cell]]]:
        """Yields what could be read, up to the limit; keeps what could not."""
        chunk: list[tuple[Picture, Cell]] = []
        done = seen = 0
        with ahead_in_threads(self._read, every, ahead=_AHEAD) as read:
            for picture, cell in read:
                seen += 1
                if isinstance(cell, Cell):
                    done += 1
                    chunk.append((picture, cell))
                else:
                    reason = str(cell).removeprefix(f"{picture.name}: ")
                    self.failed.append(failed(picture.name, reason, picture.patient))
                    # Others take its place while there are any.
                    if len(self.failed) > self._count - self.most:
                        advance(1)
                if len(chunk) == _CHUNK:
                    yield chunk
                    chunk = []
                if done == self._options.limit:
                    break
        self._left_out = self._count - seen
        if chunk:
            yield chunk

    def work(self, chunk: Sequence[tuple[Picture, Cell]], advance: Advance) -> None:
        """Makes maps, rows and pictures of some images."""
        settings = self._options.settings
        images = np.stack([cell.image for _, cell in chunk])
        probabilities = self._model.probabilities(images).tolist()
        predictions = [
            self._model.prediction(
                picture.name,
                cell,
                probability,
                threshold=self._threshold,
                patient=picture.patient,
            )
            for (picture, cell), probability in zip(chunk, probabilities, strict=True)
        ]
        targets = [self._target(prediction) for prediction in predictions]
        sign = np.array([1.0 if target == Target.ALL else -1.0 for target in targets])
        maps = attribute(
            self._model.classifier,
            images,
            sign,
            settings,
            batch_size=self._batch_size(self.most),
            advance=advance,
        )
        if self.sanity is None:
            self.sanity = self._sanity_check(images, sign, maps)
        on_cell = shares_on_cell(maps.values, images)
        area = cell_mask(images).mean((1, 2)).tolist()
        for i, prediction in enumerate(predictions):
            row = prediction.to_dict() | {
                "file": f"{unique_stem(prediction.image, self._taken)}.png",
                "explained": str(targets[i]),
                "log_odds": float(maps.log_odds[i]),
                "method": str(settings.method),
                "share_on_cell": on_cell[i],
                "cell_share_of_picture": area[i],
                "undefined": words.NO_MAP if on_cell[i] is None else None,
                "completeness": completeness(maps, i, sign[i]),
            }
            self._rows.append(row)
            self._draw(images[i], maps.values[i], row)
        if self._options.save_maps:
            self._maps.append(maps.values)

    def record(self) -> dict[str, Any]:
        """Returns the content of the record."""
        assert self.sanity is not None, "no image was worked on"
        settings, size = self._options.settings, self._model.classifier.image_size
        shares = [row["share_on_cell"] for row in self._rows]
        areas = [row["cell_share_of_picture"] for row in self._rows]
        gaps = [row["completeness"] for row in self._rows]
        return {
            "disclaimer": DISCLAIMER,
            "notes": list(self._model.notes),
            "version": __version__,
            "model": {"path": str(self._model.path), "sha256": self._model.sha256},
            "explained": words.explained(self._model.classifier.views),
            "target": str(self._options.target),
            "threshold": self._threshold,
            "settings": settings.used(size),
            "listed": self._count,
            "left_out": self._left_out,
            "unreadable": len(self.failed),
            "mean_share_on_cell": mean_of_known(shares),
            "maps_without_share": sum(share is None for share in shares),
            "mean_cell_share_of_picture": mean_of_known(areas),
            "share_on_cell_says_nothing": (
                words.BY_CONSTRUCTION
                if settings.method == Method.INTEGRATED_GRADIENTS
                else None
            ),
            "completeness_error": overall_error([gap for gap in gaps if gap]),
            "sanity_check": self.sanity.to_dict(),
            "images": self._rows + [row.to_dict() for row in self.failed],
        }

    def write(self, record: dict[str, Any]) -> None:
        """Writes all but the pictures of single images."""
        note = words.note(self._model.notes, self.sanity)
        if len(self._rows) > len(self._in_grid):
            count = len(self._in_grid)
            note = f"The first {count} of {len(self._rows):,} images. {note}"
        png = pictures.grid(
            self._in_grid,
            self._options.settings,
            note=note,
            warning=words.warning(self.sanity),
        )
        (self._folder / GRID_FILE).write_bytes(png)
        if self._maps:
            np.savez_compressed(
                self._folder / MAPS_FILE,
                image=np.array([row["image"] for row in self._rows], np.str_),
                map=np.concatenate(self._maps),
            )
        write_json(self._folder / RECORD_FILE, record)

    def _read(self, picture: Picture) -> tuple[Picture, Cell | InputError]:
        try:
            return picture, self._model.read(picture.read(), name=picture.name)
        except InputError as error:
            return picture, error

    def _target(self, prediction: Prediction) -> Target:
        if self._options.target == Target.DECISION:
            return Target(prediction.decision or "")
        return self._options.target

    def _sanity_check(
        self, images: np.ndarray, sign: np.ndarray, maps: Maps
    ) -> SanityCheck:
        """Looks at the first images of which there is a map."""
        most, draws = self._options.sanity
        masks = cell_mask(images)
        known = [
            i
            for i, (values, mask) in enumerate(zip(maps.values, masks, strict=True))
            if not is_constant(values[mask])
        ][:most]
        if not known:
            return SanityCheck(images=0, draws=draws if most else 0)
        total = len(known) * draws * num_stages(self._model.classifier)
        with terminal.track("sanity check", total, "maps") as advance:
            return sanity_check(
                self._model.classifier,
                images[known],
                sign[known],
                maps.values[known],
                self._options.settings,
                draws=draws,
                batch_size=self._batch_size(len(known)),
                advance=advance,
            )

    def _batch_size(self, number: int) -> int:
        """Returns no more than there are: what a batch is filled up with costs time."""
        if self._options.settings.method == Method.OCCLUSION:  # its patches are many
            return self._options.batch_size
        return min(self._options.batch_size, number)

    def _draw(self, image: np.ndarray, values: np.ndarray, row: dict[str, Any]) -> None:
        """Writes an image's picture, and keeps it for the grid."""
        method = self._options.settings.method
        lines = [words.share_line(row)]
        if method == Method.INTEGRATED_GRADIENTS and row["share_on_cell"] is not None:
            lines = [words.completeness_line(row)]
        lines += [f"Unlike the training cells: {w}" for w in row["warnings"]]
        abstains = "; the model abstains" if row["abstain"] else ""
        explained = pictures.Explained(
            name=row["image"],
            image=image,
            values=values,
            target=row["explained"],
            verdict=f"P(ALL) {row['probability']:.3f}, called {row['decision']} at "
            f"threshold {self._threshold:.3f}{abstains}",
            short=f"P(ALL) {row['probability']:.2f}, {row['decision']}",
            lines=tuple(lines),
        )
        note = words.note(self._model.notes, self.sanity)
        png = pictures.overlay(
            explained,
            self._options.settings,
            note=note,
            warning=words.warning(self.sanity),
        )
        (self._folder / row["file"]).write_bytes(png)
        if len(self._in_grid) < pictures.MOST_IN_GRID:
            self._in_grid.append(explained)
