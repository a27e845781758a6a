"""Weights are found in the written order, fetched whole, and merged without a rest."""

import hashlib
import http.server
import inspect
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allcls_jax import paths
from allcls_jax.config import HeadKind, ModelName
from allcls_jax.errors import InputError
from allcls_jax.models import pretrained, vgg
from allcls_jax.models.pretrained import (
    PUBLISHED,
    Published,
    WeightsUnavailableError,
    find,
    merge,
)
from allcls_jax.models.weight_files import read_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

Arrays = dict[str, np.ndarray]

NAME = "tiny_notop.h5"
CACHED = Path("weights") / "tiny_imagenet_notop.safetensors"
NO_SERVER = "http://127.0.0.1:9"  # nothing may be asked there


class Server(http.server.ThreadingHTTPServer):
    """Serves one file on the loopback interface, well or as `script` says."""

    daemon_threads = True
    content: bytes
    script: list[str]  # what happens to each request; then `ok`
    requests: list[str | None]  # the Range header of each

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers["Range"]
        server.requests.append(wanted)
        what = server.script.pop(0) if server.script else "ok"
        if what.isdecimal():
            self.send_error(int(what))
            return
        content, start = server.content, 0
        if self.path != f"/tiny/{NAME}":
            self.send_error(404)
            return
        if wanted and what != "no ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            self.send_response(200)
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if what == "cut":
            content = content[: len(content) // 2]
        self.wfile.write(content)


@pytest.fixture
def file(writers: dict[str, Any], keras_tiny: Any, tmp_path: Path) -> Path:
    """The file that is published in these tests."""
    return writers["official"](keras_tiny, tmp_path / "published")


@pytest.fixture
def server(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = file.read_bytes()
    md5 = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(PUBLISHED, ModelName.TINY, Published(f"tiny/{NAME}", md5))
    server = Server(("127.0.0.1", 0), Handler)
    server.content, server.script, server.requests = content, [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "our cache"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def imagenet(cache: Path, server: Server | None) -> Arrays:
    url = server.url if server else NO_SERVER
    found = find(ModelName.TINY, "imagenet", cache, base_url=url, pause=0)
    assert found.variant == ModelName.TINY
    return found.arrays


def assert_bit_equal(actual: Arrays, expected: Arrays) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].tobytes() == array.tobytes(), name


def test_the_published_files_are_those_of_keras() -> None:
    from keras.src.applications import vgg16, vgg19

    for variant, module in ((ModelName.VGG16, vgg16), (ModelName.VGG19, vgg19)):
        published = PUBLISHED[variant]
        url = f"{pretrained.PUBLISHED_AT}/{published.path}"
        assert url == module.WEIGHTS_PATH_NO_TOP
        assert published.md5 in inspect.getsource(module)


# Where weights are looked for


def test_a_named_file_is_read_and_nothing_is_cached(
    file: Path, cache: Path, tiny_arrays: Arrays
) -> None:
    found = find(ModelName.TINY, str(file), cache, base_url=NO_SERVER)
    assert_bit_equal(found.arrays, tiny_arrays)
    assert not cache.exists()


def test_a_named_file_of_another_network_is_refused(file: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"holds TINY, but model\.name is 'vgg19'"):
        find(ModelName.VGG19, str(file), cache)


def test_a_named_file_that_is_missing_is_no_reason_for_random_weights(
    cache: Path,
) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        find(ModelName.VGG19, "nowhere.h5", cache)
    assert not isinstance(caught.value, WeightsUnavailableError)


def test_nobody_publishes_the_tiny_network(cache: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="nobody publishes"):
        find(ModelName.TINY, "imagenet", cache)


def test_our_cache_comes_first(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    imagenet(cache, server)
    theirs = paths.keras_models_dir() / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"would be warned of")
    assert_bit_equal(imagenet(cache, None), tiny_arrays)
    assert len(server.requests) == 1


def test_the_cache_of_keras_comes_second_and_is_copied_to_ours(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    theirs = paths.keras_models_dir() / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(server.content)
    assert_bit_equal(imagenet(cache, None), tiny_arrays)
    assert files(cache) == [CACHED.name]
    kept = read_weights(cache / CACHED)
    assert kept.source_name == NAME
    assert kept.source_sha256 == hashlib.sha256(server.content).hexdigest()
    theirs.unlink()
    assert_bit_equal(imagenet(cache, None), tiny_arrays)


def test_a_file_of_keras_with_another_md5_is_not_used(
    server: Server,
    cache: Path,
    tiny_arrays: Arrays,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = paths.keras_models_dir() / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(server.content + b"\0")  # still a readable file
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert len(server.requests) == 1
    assert f"--config.model.weights={theirs} uses it" in capsys.readouterr().out


def test_a_damaged_file_in_our_cache_is_made_again(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    (cache / "weights").mkdir(parents=True)
    (cache / CACHED).write_bytes(b"damaged")
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert_bit_equal(read_weights(cache / CACHED).arrays, tiny_arrays)


def test_weights_are_used_though_the_cache_cannot_be_written(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    theirs = paths.keras_models_dir() / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(server.content)
    cache.write_text("a file where the folder should be")
    assert_bit_equal(imagenet(cache, None), tiny_arrays)


def test_no_cache_and_no_file_of_keras_is_an_error_that_names_the_folder(
    server: Server, cache: Path
) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsUnavailableError, match=r"our cache.*\n.*--config\.cach"):
        imagenet(cache, server)


# Download


def test_a_download_is_kept_as_safetensors_alone(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert server.requests == [None]
    assert files(cache) == [CACHED.name, f"{NAME}.lock"]


def test_a_cut_download_goes_on_where_it_stopped(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    server.script = ["cut"]
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert server.requests == [None, f"bytes={len(server.content) // 2}-"]


def test_the_next_run_goes_on_where_the_last_one_stopped(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    server.script = ["cut", "cut"]
    with pytest.raises(WeightsUnavailableError, match="cut after") as caught:
        imagenet(cache, server)
    assert "--config.model.weights=FILE" in str(caught.value)
    got = (cache / "weights" / f"{NAME}.part").stat().st_size
    assert got > len(server.content) // 2
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert server.requests[2:] == [f"bytes={got}-"]


def test_a_server_without_ranges_sends_the_whole_again(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    server.script = ["cut", "no ranges"]
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert len(server.requests) == 2


def test_a_part_that_is_the_whole_file_is_used(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / f"{NAME}.part").write_bytes(server.content)
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert server.requests == [f"bytes={len(server.content)}-"]


def test_a_finished_download_of_a_run_that_was_killed_is_used(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / NAME).write_bytes(server.content)
    assert_bit_equal(imagenet(cache, None), tiny_arrays)
    assert files(cache) == [CACHED.name, f"{NAME}.lock"]


def test_the_part_of_another_file_is_thrown_away(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / f"{NAME}.part").write_bytes(b"x" * 1000)
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert server.requests == ["bytes=1000-", None]


def test_a_file_with_the_wrong_md5_is_deleted_and_not_fetched_twice(
    server: Server, cache: Path
) -> None:
    server.content = server.content[:-1] + b"\xff"
    with pytest.raises(WeightsUnavailableError, match="was deleted") as caught:
        imagenet(cache, server)
    message = str(caught.value)
    assert PUBLISHED[ModelName.TINY].md5 in message
    assert f"{server.url}/tiny/{NAME}" in message
    assert "--config.model.weights=FILE" in message
    assert server.requests == [None]
    assert files(cache) == [f"{NAME}.lock"]


def test_a_server_error_is_tried_once_more(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    server.script = ["503"]
    assert_bit_equal(imagenet(cache, server), tiny_arrays)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("script", "asked"), [(["500", "502", "ok"], 2), (["404", "ok"], 1)]
)
def test_a_server_that_refuses_is_named(
    script: list[str], asked: int, server: Server, cache: Path
) -> None:
    server.script = script
    with pytest.raises(
        WeightsUnavailableError, match=f"HTTP Error {script[asked - 1]}"
    ):
        imagenet(cache, server)
    assert len(server.requests) == asked


@pytest.mark.usefixtures("server")
def test_without_a_network_every_place_is_named(cache: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but not listening
        with pytest.raises(WeightsUnavailableError, match="refused") as caught:
            find(ModelName.TINY, "imagenet", cache, base_url=url, pause=0)
    for place in (cache / CACHED, paths.keras_models_dir() / NAME, url):
        assert str(place) in str(caught.value)


def test_two_runs_at_once_download_once(
    server: Server, cache: Path, tiny_arrays: Arrays
) -> None:
    with ThreadPoolExecutor(2) as pool:
        for arrays in pool.map(lambda _: imagenet(cache, server), range(2)):
            assert_bit_equal(arrays, tiny_arrays)
    assert server.requests == [None]


# Merge


@pytest.fixture(scope="module")
def params() -> vgg.Params:
    """Fresh parameters of the tiny network with the paper's head."""
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.GAP, 0.5)
    return vgg.init_params(vgg.param_shapes(vgg.VGG(layers), 32), seed=0)


HEAD = (r"dense_\d+/.*",)


def test_merged_arrays_are_bit_equal_and_kept_leaves_the_same(
    params: vgg.Params, tiny_arrays: Arrays
) -> None:
    merged = merge(params, tiny_arrays, keep=HEAD)
    assert {k: list(v) for k, v in merged.items()} == {
        k: list(v) for k, v in params.items()
    }
    stack = {
        name: array
        for name, array in vgg.flatten_params(merged).items()
        if not name.startswith("dense")
    }
    assert_bit_equal({k: np.asarray(v) for k, v in stack.items()}, tiny_arrays)
    for layer in ("dense_2", "dense_3"):
        for name, leaf in params[layer].items():
            assert merged[layer][name] is leaf


def test_a_kept_leaf_is_not_replaced_though_there_is_an_array(
    params: vgg.Params, tiny_arrays: Arrays
) -> None:
    merged = merge(params, tiny_arrays, keep=(*HEAD, r"block5_conv1/kernel"))
    block5 = params["block5_conv1"]
    assert merged["block5_conv1"]["kernel"] is block5["kernel"]
    assert merged["block5_conv1"]["bias"] is not block5["bias"]


def test_shapes_without_values_can_be_merged_into(tiny_arrays: Arrays) -> None:
    model = vgg.VGG(vgg.conv_stack(ModelName.TINY))
    merged = vgg.flatten_params(merge(vgg.param_shapes(model, 32), tiny_arrays))
    assert_bit_equal({k: np.asarray(v) for k, v in merged.items()}, tiny_arrays)


def test_every_mismatch_of_both_sides_is_named(
    params: vgg.Params, tiny_arrays: Arrays
) -> None:
    arrays = dict(tiny_arrays)
    del arrays["block2_conv1/bias"]
    arrays["block3_conv1/kernel"] = np.ones((3, 3, 8, 9), np.float32)
    arrays["fc1/kernel"] = np.ones((2, 2), np.float32)
    with pytest.raises(InputError) as caught:
        merge(params, arrays, keep=(r"dense_2/.*", r"dense_3/bias"))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("4 problems")
    assert set(lines[1:5]) == {
        "  - block2_conv1/bias (8,): only in the network",
        "  - block3_conv1/kernel: (3, 3, 8, 8) in the network, (3, 3, 8, 9) in the "
        "weights",
        "  - dense_3/kernel (256, 2): only in the network",
        "  - fc1/kernel (2, 2): only in the weights",
    }


@pytest.mark.parametrize("pattern", [r"dense", r"ense_\d+/.*", r"dense_2/.*"])
def test_a_pattern_must_match_the_whole_name(
    pattern: str, params: vgg.Params, tiny_arrays: Arrays
) -> None:
    with pytest.raises(InputError, match="dense_3/kernel"):
        merge(params, tiny_arrays, keep=(pattern,))


def test_ignored_arrays_need_no_place(params: vgg.Params, tiny_arrays: Arrays) -> None:
    arrays = tiny_arrays | {"fc1/kernel": np.ones((2, 2), np.float32)}
    merged = merge(params, arrays, keep=HEAD, ignore=(r"(fc1|fc2|predictions)/.*",))
    assert "fc1" not in merged
