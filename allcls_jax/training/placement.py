"""What fits where: the memory that is free, and what is kept or done at once in it."""

import math

import jax
import psutil

from allcls_jax import terminal
from allcls_jax.config import Place
from allcls_jax.errors import InputError
from allcls_jax.models.vgg import VGG, layer_table

# Of the free memory, what is kept may take up this share; the rest is for computing.
_SHARE = 0.5

# Images at once: of a CPU's kernels the transforms are shared by so many; beyond the
# other a GPU gains nothing.
_CPU_BATCH, _MOST = 16, 512


def free_on_host() -> int:
    """Returns the bytes of this machine's memory that can be had."""
    return psutil.virtual_memory().available


def free_on_device() -> int:
    """Returns the free bytes of a device's memory, the least of all devices'."""
    free = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}  # a CPU has none of its own
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats["bytes_in_use"])
    return min(free, default=free_on_host())


def fits_memory(num_bytes: int) -> bool:
    """Returns whether something may be kept in this machine's memory."""
    return num_bytes <= _SHARE * free_on_host()


def choose(place: Place, num_bytes: int, what: str) -> Place:
    """Returns where something lies during training, and says so.

    Args:
      place: as configured; `auto` is the first of device, host and disk in which it
        leaves enough memory free.
      num_bytes: of it.
      what: it is, such as `features`.

    Raises:
      InputError: if it is larger than the free memory of the place asked for.
    """
    free = {Place.DEVICE: free_on_device(), Place.HOST: free_on_host()}
    size = f"{num_bytes / 2**30:.2f} GiB"
    if place is Place.AUTO:
        fitting = [p for p, here in free.items() if num_bytes <= _SHARE * here]
        chosen = fitting[0] if fitting else Place.DISK
        terminal.say(f"{what}: {size}, kept {_NAMES[chosen]} (train.keep = auto)")
        return chosen
    if num_bytes > free.get(place, math.inf):
        raise InputError(
            f"train.keep = {str(place)!r}: {what} take up {size}, and "
            f"{free[place] / 2**30:.2f} GiB are free there; set it to 'auto'"
        )
    terminal.say(f"{what}: {size}, kept {_NAMES[place]}")
    return place


def fitting_batch(model: VGG, image_size: int, *, learning: bool) -> int:
    """Returns how many images may go through a network at once, over all devices.

    A power of two on each device.

    Args:
      model: whose layers' outputs take up the memory.
      image_size: pixels.
      learning: whether all of them are kept for the way back, or two at a time.
    """
    devices = jax.device_count()
    if jax.default_backend() == "cpu":
        return _CPU_BATCH * devices
    sizes = [math.prod(row.shape) for row in layer_table(model.layers, image_size)]
    # Gradients lie beside what they are of; a convolution may need space of its own.
    values = 2 * sum(sizes) if learning else 4 * max(sizes)
    fits = _SHARE * free_on_device() / (values * jax.numpy.dtype(model.dtype).itemsize)
    return devices * min(_MOST, 2 ** int(math.log2(max(fits, 1))))


def heads_at_once(num_bytes: int) -> int:
    """Returns how many heads may be trained together.

    Args:
      num_bytes: of one head's state.
    """
    # The state, what becomes of it, and gradients.
    return max(1, int(_SHARE * free_on_device() / (3 * num_bytes)))


_NAMES = {
    Place.DEVICE: "on the device",
    Place.HOST: "in this machine's memory",
    Place.DISK: "on disk",
}
