"""What the page and its interface do, apart from HTTP: predict, explain, decide, keep.

Pictures stay in memory: those of a request until it is answered, those that the page
asks to keep (as the network sees them) until they are forgotten or newer ones need the
room. All methods are called in one event loop; decoding and computing have threads.
"""

import asyncio
import contextlib
import functools
import io
import itertools
import secrets
import struct
import zipfile
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, __version__
from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.errors import InputError
from allcls_jax.serving.arguments import COVERAGE
from allcls_jax.serving.model import Cell, Model, failed
from allcls_jax.serving.prediction.inputs import patient_in
from allcls_jax.serving.web.batching import Batcher, Seen
from allcls_jax.serving.web.forms import Form, read_form
from allcls_jax.serving.web.kept import Kept
from allcls_jax.serving.web.limits import (
    Limits,
    Memory,
    Refused,
    busy,
    check_pixels,
)
from allcls_jax.serving.web.zips import Upload, is_zip, uploads_of

METHODS = ("gradcam", "gradcam++")  # those that take no more than a few passes

_EXAMPLES = 8
_MOST_MAPS = 64  # that wait at a time

HeatMap = Callable[..., bytes]  # as `explanation.pictures.heat_map_png`


class Service:
    """Answers for one model.

    Attributes:
      model: that answers.
      limits: of each request.
      kept: pictures that the page wants to see again, as PNG.
    """

    def __init__(
        self, model: Model, limits: Limits, *, heat_map: HeatMap | None = None
    ):
        """Computes nothing yet.

        Args:
          model: opened.
          limits: of each request.
          heat_map: draws heat maps; None: the package's own.
        """
        self.model = model
        self.limits = limits
        self._memory = Memory(limits.max_memory)
        self._batcher = Batcher(model)
        self._heat_map = heat_map or _package_heat_map
        self._explainer = ThreadPoolExecutor(1, "explain")
        self._maps_waiting = 0
        self.kept = Kept(limits.max_kept)
        self._numbers = itertools.count(1)
        self._ready = False

    async def start(self) -> None:
        """Begins to compute, and compiles in the background what draws heat maps."""
        self._batcher.start()
        self._ready = True
        image = self.model.check.images[0]
        self._explainer.submit(self._heat_map, self.model, image)

    async def close(self) -> None:
        """Ends what is being computed and forgets all pictures."""
        self._ready = False
        self._explainer.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._batcher.close)
        self.kept.clear()

    @property
    def ready(self) -> bool:
        """Whether pictures can be sent."""
        return self._ready

    async def predict(
        self, stream: AsyncIterable[bytes], content_type: str
    ) -> dict[str, Any]:
        """Returns the answer to a form with pictures.

        Args:
          stream: the body of the request.
          content_type: its header.

        Raises:
          Refused: if the form is not answered.
          InputError: if a field is wrong.
        """
        with self._memory.hold() as take:
            form = await read_form(stream, content_type, self.limits, take)
            threshold = self.model.threshold(form.fields.get("threshold") or None)
            coverage = _coverage(form.fields.get("coverage"))
            self.model.margin(threshold, coverage)  # or there is no such coverage
            keep = _flag(form.fields, "keep")
            async with self._in_time():
                uploads, passed_over = await self._uploads(form)
                rows = await self._rows(
                    uploads, threshold=threshold, coverage=coverage, keep=keep
                )
        return {
            **self._heading(),
            "threshold": threshold,
            "coverage": coverage,
            "rows": rows,
            "passed_over": passed_over,
        }

    async def explain(self, stream: AsyncIterable[bytes], content_type: str) -> bytes:
        """Returns the heat map, a PNG, of the one picture in a form.

        Raises:
          Refused: if the form is not answered.
          InputError: if a field is wrong or the picture cannot be read.
        """
        with self._memory.hold() as take:
            form = await read_form(stream, content_type, self.limits, take)
            settings = self._map_settings(
                form.fields.get("method") or METHODS[0],
                form.fields.get("block", ""),
                form.fields.get("threshold"),
            )
            async with self._in_time():
                uploads, _ = await self._uploads(form)
                if len(uploads) != 1:
                    raise Refused(
                        400,
                        f"the form has {len(uploads)} pictures",
                        "send one picture at a time in the field file",
                    )
                cell = await asyncio.to_thread(self._read, uploads[0])
                return await self._map(cell.image, settings)

    async def explain_kept(
        self, name: str, *, method: str, block: str, threshold: str | None
    ) -> bytes:
        """Returns the heat map of a picture that was kept.

        Args:
          name: of the picture.
          method: of `METHODS`.
          block: 1 to 5, or empty for the network's last.
          threshold: above which it is called ALL; its map is of what it is called.

        Raises:
          Refused: if it was not kept, or has been forgotten.
          InputError: if an argument is wrong.
        """
        png = self.kept.get(name)
        settings = self._map_settings(method, block, threshold)
        async with self._in_time():
            return await self._map(transforms.decode_png(png), settings)

    def decide(
        self, probabilities: Sequence[float], threshold: str | None, coverage: float
    ) -> dict[str, Any]:
        """Returns decisions at another threshold of probabilities that were given.

        Raises:
          InputError: if the threshold or the coverage is none.
        """
        value = self.model.threshold(threshold)
        rows = self.model.decisions(probabilities, threshold=value, coverage=coverage)
        return {
            **self._heading(),
            "threshold": value,
            "coverage": coverage,
            "rows": rows,
        }

    def describe(self) -> dict[str, Any]:
        """Returns what there is to know of the model and the limits."""
        record = self.model.record
        return {
            **self._heading(),
            "labels": list(self.model.labels),
            "thresholds": self.model.thresholds,
            "default_threshold": self.model.default_threshold,
            "coverage": COVERAGE,
            "network": record["model"],
            "temperature": self.model.classifier.temperature,
            "domain": self.model.domain.to_json(),
            "versions": {"allcls_jax": __version__, "written_by": record["package"]},
            "methods": list(METHODS),
            "limits": {
                "max_upload": self.limits.max_upload,
                "max_files": self.limits.max_files,
                "max_pixels": self.limits.max_pixels,
            },
        }

    @functools.cached_property
    def examples(self) -> bytes:
        """A zip of synthetic cells to try the page with."""
        config = SyntheticConfig(num_images=_EXAMPLES, num_patients=_EXAMPLES)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for index in range(_EXAMPLES):
                png = transforms.encode_png(synthetic.draw(config, index))
                archive.writestr(f"synthetic_{index + 1}.png", png)
        return packed.getvalue()

    async def _uploads(self, form: Form) -> tuple[list[Upload], list[str]]:
        # Only the list of a zip takes long enough for a thread to be worth it.
        if any(map(is_zip, form.files)):
            return await asyncio.to_thread(uploads_of, form.files, self.limits)
        return uploads_of(form.files, self.limits)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Turns what takes too long into a refusal."""
        seconds = self.limits.timeout
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise busy(f"the answer takes longer than {seconds:g} seconds") from error

    async def _rows(
        self,
        uploads: Sequence[Upload],
        *,
        threshold: float,
        coverage: float,
        keep: bool,
    ) -> list[dict[str, Any]]:
        # Others' pictures come in between those of a large upload.
        window = asyncio.Semaphore(2 * self.model.batch_size)

        async def row(upload: Upload) -> tuple[dict[str, Any], bytes]:
            name, patient = upload.name, patient_in(upload.name)
            # Only what can be fetched again needs a name that cannot be guessed.
            token = secrets.token_urlsafe(12) if keep else str(next(self._numbers))
            async with window:
                work = self._batcher.submit(lambda: self._seen(upload, keep=keep))
                try:
                    seen, probability = await asyncio.wrap_future(work)
                except InputError as error:
                    told = failed(name, error, patient).to_dict()
                    return {"id": token, **told}, b""
            cell, png = seen.rest
            found = self.model.prediction(
                name,
                cell,
                probability,
                threshold=threshold,
                coverage=coverage,
                patient=patient,
            )
            return {"id": token, **found.to_dict()}, png

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(row(upload)) for upload in uploads]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        # Only now: of an answer that nobody waits for, nothing is kept.
        found = [task.result() for task in tasks]
        for told, png in found:
            if png:
                self.kept.put(told["id"], png)
        return [told for told, _ in found]

    def _seen(self, upload: Upload, *, keep: bool) -> Seen:
        cell = self._read(upload)
        png = transforms.encode_png(cell.image) if keep else b""
        return Seen(cell.image, (cell, png))

    def _read(self, upload: Upload) -> Cell:
        data = upload.read()
        check_pixels(data, name=upload.name, limits=self.limits)
        return self.model.read(data, name=upload.name)

    def _map_settings(
        self, method: str, block: str, threshold: str | None
    ) -> dict[str, Any]:
        if method not in METHODS:
            raise InputError(f"method={method}: must be one of {', '.join(METHODS)}")
        if block not in ("", *"12345"):
            raise InputError(f"block={block}: must be a number from 1 to 5")
        above = self.model.threshold(threshold or None)
        return {
            "method": method,
            "block": int(block) if block else None,
            "threshold": above,
        }

    async def _map(self, image: np.ndarray, settings: dict[str, Any]) -> bytes:
        if self._maps_waiting >= _MOST_MAPS:
            raise busy("too many heat maps are being drawn at the moment")
        self._maps_waiting += 1
        try:
            draw = functools.partial(self._heat_map, self.model, image, **settings)
            png = await asyncio.get_running_loop().run_in_executor(
                self._explainer, draw
            )
            return _labelled(png, " ".join([DISCLAIMER, *self.model.notes]))
        finally:
            self._maps_waiting -= 1

    def _heading(self) -> dict[str, Any]:
        return {
            "disclaimer": DISCLAIMER,
            "notes": list(self.model.notes),
            "model_sha256": self.model.sha256,
        }


def _package_heat_map(model: Model, image: np.ndarray, **settings: Any) -> bytes:
    # It brings matplotlib, which the server need not wait for.
    from allcls_jax.serving.explanation.pictures import heat_map_png

    return heat_map_png(model, image, **settings)


def _labelled(png: bytes, text: str) -> bytes:
    """Returns a PNG that carries a text as its `Disclaimer`."""
    chunk = b"iTXtDisclaimer\0\0\0\0\0" + text.encode()
    sums = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    head = 33  # the signature and the first chunk
    return b"".join((png[:head], sums[0], chunk, sums[1], png[head:]))


def _coverage(text: str | None) -> float:
    try:
        return float(text) if text else COVERAGE
    except ValueError as error:
        raise InputError(
            f"coverage={text}: must be a number above 0 and at most 1"
        ) from error


def _flag(fields: dict[str, str], name: str) -> bool:
    text = fields.get(name, "false").lower()
    if text not in ("true", "false"):
        raise InputError(f"{name}={text}: must be true or false")
    return text == "true"
