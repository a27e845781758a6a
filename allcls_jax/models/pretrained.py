"""ImageNet weights: found or fetched, and merged strictly into a network.

What comes from Keras' cache or the network is used only if its md5 is the published
one; it is then kept in our own cache, so that the next search is short and needs no
network. A merge leaves no array unexplained on either side.
"""

import dataclasses
import functools
import hashlib
import http
import http.client
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import __version__, paths, terminal
from allcls_jax.config import ModelName
from allcls_jax.errors import InputError, list_problems
from allcls_jax.locking import locked
from allcls_jax.models.weight_files import WeightFile, read_weights, write_safetensors

IMAGENET = "imagenet"  # the value of `model.weights` that means: search, then download

PUBLISHED_AT = "https://storage.googleapis.com/tensorflow/keras-applications"

_TIMEOUT = 10.0  # seconds to connect, and between two pieces
_CHUNK = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Published:
    """A weight file of Keras Applications."""

    path: str  # below `PUBLISHED_AT`
    md5: str  # hexadecimal

    @property
    def name(self) -> str:
        """The file's name, also in Keras' own cache."""
        return self.path.rpartition("/")[2]


# The convolutional parts.
PUBLISHED = {
    ModelName.VGG16: Published(
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "6d6bbae143d832006294945121d1f1fc",
    ),
    ModelName.VGG19: Published(
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "253f8cb515780f3b799900260a226db6",
    ),
}


class WeightsUnavailableError(InputError):
    """ImageNet weights are neither on this machine nor to be had from the network."""


def find(
    name: ModelName,
    weights: str,
    cache_dir: Path,
    *,
    base_url: str = PUBLISHED_AT,
    pause: float = 1.0,
) -> WeightFile:
    """Returns a network's weights.

    Args:
      name: the network.
      weights: a file of any layout that `read_weights` knows; or `imagenet`, for
        which our cache is looked at, then Keras', then the file that Keras publishes
        is downloaded. A download that is cut goes on where it stopped, also in a later
        run.
      cache_dir: our cache; weights lie in its folder `weights`.
      base_url: where the published files lie.
      pause: seconds before the one retry of a failed download.

    Raises:
      WeightsUnavailableError: if `imagenet` weights cannot be had.
      InputError: if the file that `weights` names does not give this network's.
    """
    if weights != IMAGENET:
        found = read_weights(weights)
        if found.variant != name:
            raise InputError(
                f"model.weights = {weights!r} holds {found.variant.upper()}, but "
                f"model.name is {str(name)!r}; change one of them"
            )
        return found
    published = PUBLISHED.get(name)
    if published is None:
        raise WeightsUnavailableError(
            f"model.weights = {IMAGENET!r}: nobody publishes ImageNet weights of "
            f"{str(name)!r}; set --config.model.weights=random"
        )
    cached = cache_dir / "weights" / f"{name}_imagenet_notop.safetensors"
    tried: list[str] = []
    if found := _cached(name, cached, tried):
        return found
    theirs = paths.keras_models_dir() / published.name
    if found := _published(theirs, published, tried):
        _keep(found, cached)
        return found
    ours = cached.with_name(published.name)
    url = f"{base_url}/{published.path}"
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            ours.with_name(f"{ours.name}.lock"),
            waiting="waiting for another process that fetches the weights",
        ):
            # Another process may have been faster.
            if found := _cached(name, cached, []):
                return found
            if not ours.exists():
                _download(url, ours, md5=published.md5, pause=pause)
            if found := _published(ours, published, tried):
                if _keep(found, cached):
                    ours.unlink()
                return found
    except (OSError, http.client.HTTPException) as error:
        tried.append(f"{url}: {error}")
    raise WeightsUnavailableError(
        str(
            list_problems(
                f"model.weights = {IMAGENET!r}: no weights of {name.upper()} found",
                tried,
                remedy=f"Download {url} by any means and name the file with "
                "--config.model.weights=FILE; --config.cache_dir=DIR takes another "
                "cache folder",
            )
        )
    )


def merge(
    params: Mapping[str, Mapping[str, Any]],
    arrays: Mapping[str, np.ndarray],
    *,
    keep: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
) -> dict[str, dict[str, Any]]:
    """Returns parameters in which pretrained arrays stand for the fresh ones.

    Args:
      params: layer → name → array or `jax.ShapeDtypeStruct`.
      arrays: `layer/name` → float32, such as `WeightFile.arrays`.
      keep: regular expressions; parameters whose whole `layer/name` matches one are
        returned as they are.
      ignore: regular expressions; arrays that match one need no place in `params`.

    Returns:
      The structure of `params`; replaced leaves are those of `arrays`.

    Raises:
      InputError: naming every parameter without an array, every array without a
        parameter and every pair of different shape.
    """
    problems: list[str] = []
    merged: dict[str, dict[str, Any]] = {}
    for layer, leaves in params.items():
        merged[layer] = {}
        for leaf, value in leaves.items():
            name = f"{layer}/{leaf}"
            array = arrays.get(name)
            merged[layer][leaf] = value
            if _matches(name, keep):
                continue
            if array is None:
                problems.append(f"{name} {value.shape}: only in the network")
            elif array.shape != value.shape:
                problems.append(
                    f"{name}: {value.shape} in the network, {array.shape} in the "
                    "weights"
                )
            else:
                merged[layer][leaf] = np.asarray(array, np.float32)
    for name, array in arrays.items():
        layer, _, leaf = name.rpartition("/")
        if leaf not in params.get(layer, {}) and not _matches(name, ignore):
            problems.append(f"{name} {array.shape}: only in the weights")
    if problems:
        raise list_problems(
            "the weights do not fit the network",
            problems,
            remedy="choose the network with --config.model.name and the file with "
            "--config.model.weights",
        )
    return merged


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _cached(name: ModelName, cached: Path, tried: list[str]) -> WeightFile | None:
    """Returns what an earlier run kept, if it is whole."""
    try:
        if not cached.exists():
            tried.append(f"{cached}: does not exist")
            return None
        found = read_weights(cached)
        if found.variant != name:
            raise InputError(f"{cached}: holds {found.variant.upper()}")
    except (InputError, OSError) as error:
        terminal.warn(f"cached weights are not used: {error}")
        tried.append(str(error))
        return None
    return found


def _published(file: Path, published: Published, tried: list[str]) -> WeightFile | None:
    """Returns the weights of a file if its md5 is the published one."""
    try:
        md5 = _md5(file)
    except FileNotFoundError:
        tried.append(f"{file}: does not exist")
        return None
    except OSError as error:
        tried.append(f"{file}: cannot be read ({error})")
        return None
    if md5 != published.md5:
        problem = f"{file}: its md5 is {md5}, the published file's {published.md5}"
        terminal.warn(f"{problem}; not used. --config.model.weights={file} uses it")
        tried.append(problem)
        return None
    return read_weights(file)


def _keep(found: WeightFile, cached: Path) -> bool:
    """Writes weights into our cache; a cache that cannot be written is no error."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(found, cached)
    except (OSError, InputError) as error:
        terminal.warn(f"weights are used, but not cached: {error}")
        return False
    return True


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(
            stream, functools.partial(hashlib.md5, usedforsecurity=False)
        ).hexdigest()


def _download(url: str, target: Path, *, md5: str, pause: float) -> None:
    """Fetches a file, which appears whole, with the right md5, or not at all.

    Raises:
      OSError, http.client.HTTPException: if two attempts fail. What came of the file
        stays beside `target`, and the next call goes on from there.
    """
    part = target.with_name(f"{target.name}.part")
    for last in (False, True):
        try:
            resumed = _append(url, part)
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if last or refused:
                raise
            problem = str(error)
        else:
            if (found := _md5(part)) == md5:
                part.replace(target)
                return
            part.unlink()
            problem = f"what came has md5 {found}, not {md5}, and was deleted"
            # What an earlier run had left may have been the wrong half; a file that
            # came whole and wrong will come so again.
            if last or not resumed:
                raise OSError(problem)
        terminal.warn(f"download of {url}: {problem}; trying once more")
        time.sleep(pause)


def _append(url: str, part: Path) -> bool:
    """Fetches what is missing of a file; returns whether anything was there before."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"allcls_jax/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return True  # all of it is there
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends the whole
        length = int(response.headers.get("Content-Length") or 0)
        total = start + length
        got = 0
        with (
            part.open("ab" if start else "wb") as file,
            terminal.track(
                f"downloading {url.rpartition('/')[2]}",
                math.ceil(total / _CHUNK),
                "MiB",
                done=start // _CHUNK,
            ) as advance,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                got += len(chunk)
                advance(1)
    if got < length:
        raise ConnectionError(f"cut after {start + got:,} of {total:,} bytes")
    return start > 0
