"""What fits where, by the memory that is free."""

import jax
import jax.numpy as jnp
import pytest

from allcls_jax.config import HeadKind, ModelName, Place
from allcls_jax.errors import InputError
from allcls_jax.models import vgg
from allcls_jax.training import placement

GIB = 2**30


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 8 GiB beside 32 GiB of the machine's."""
    monkeypatch.setattr(placement, "free_on_device", lambda: 8 * GIB)
    monkeypatch.setattr(placement, "free_on_host", lambda: 32 * GIB)


@pytest.mark.parametrize(
    ("size", "place"),
    [(1, Place.DEVICE), (4, Place.DEVICE), (5, Place.HOST), (17, Place.DISK)],
)
def test_the_nearest_place_that_leaves_memory_free_is_taken_and_told(
    size, place, capsys
):
    assert placement.choose(Place.AUTO, size * GIB, "features") is place
    told = capsys.readouterr().out
    assert f"features: {size}.00 GiB" in told
    assert {"device": "on the device", "host": "memory", "disk": "on disk"}[
        place
    ] in told


def test_what_is_asked_for_is_done_if_it_can_be():
    assert placement.choose(Place.DEVICE, 7 * GIB, "images") is Place.DEVICE
    assert placement.choose(Place.DISK, 1, "images") is Place.DISK
    with pytest.raises(InputError, match=r"train\.keep = 'device'.*9\.00 GiB.*8\.00"):
        placement.choose(Place.DEVICE, 9 * GIB, "images")
    with pytest.raises(InputError, match=r"train\.keep = 'host'.*33\.00 GiB"):
        placement.choose(Place.HOST, 33 * GIB, "images")


def network(dtype=jnp.bfloat16) -> vgg.VGG:
    layers = vgg.conv_stack(ModelName.VGG19) + vgg.head(HeadKind.FLATTEN, 0.5)
    return vgg.VGG(layers, dtype=dtype)


def test_a_batch_fits_the_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = {}
    for free in (1, 8, 80):
        monkeypatch.setattr(placement, "free_on_device", lambda free=free: free * GIB)
        found[free] = [
            placement.fitting_batch(network(), 224, learning=learning)
            for learning in (False, True)
        ]
    # The first block of one image: 224 x 224 x 64 values of two bytes, 6.1 MiB.
    assert found[1][0] * 6.1 * 2**20 < GIB
    assert found[80][0] == 512, "more gains nothing"
    for free in (1, 8):
        forward, learning = found[free]
        assert 1 <= learning < forward
        assert forward & (forward - 1) == 0
    assert found[8][1] > found[1][1]
    monkeypatch.setattr(placement, "free_on_device", lambda: 8 * GIB)
    wide = placement.fitting_batch(network(jnp.float32), 224, learning=True)
    assert wide == found[8][1] // 2


def test_a_batch_on_a_cpu_fits_its_caches():
    forward = placement.fitting_batch(network(), 224, learning=False)
    assert forward == placement._CPU_BATCH * jax.device_count()


def test_heads_share_the_memory_of_the_device():
    assert placement.heads_at_once(100 * 2**20) == 13  # 4 GiB, each three times
    assert placement.heads_at_once(100 * GIB) == 1


def test_memory_is_that_of_this_machine(monkeypatch):
    monkeypatch.undo()
    assert 2**20 < placement.free_on_host() < 2**50
    assert placement.free_on_device() > 2**20
