"""What the hardware can do at most: one matrix product, one copy in its memory.

Taken in the process that the rows are measured in, so that a share of them is a share
of what was there at that moment.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from allcls_jax.experiments.benchmark import timing


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates of this process.

    Attributes:
      matmul: FLOP/s of a square matrix product.
      copy: bytes/s read and written by a copy.
      settings: how they were taken.
    """

    matmul: float
    copy: float
    settings: dict[str, Any]


def measure(*, side: int, dtype: Any, copy_bytes: int, repeats: int) -> Ceilings:
    """Measures both.

    Args:
      side: of the matrices.
      dtype: of the matrices.
      copy_bytes: size of the array that is copied.
      repeats: the best of so many counts: a ceiling is what can be reached.
    """
    return Ceilings(
        matmul=_matmul(side, dtype, repeats),
        copy=_copy(copy_bytes, repeats),
        settings={
            "side": side,
            "dtype": jnp.dtype(dtype).name,
            "copy_bytes": copy_bytes,
            "repeats": repeats,
        },
    )


def _matmul(side: int, dtype: Any, repeats: int) -> float:
    keys = jax.random.split(jax.random.key(0), 2)
    one, other = (jax.random.normal(key, (side, side), dtype) for key in keys)
    product = jax.jit(jnp.matmul)
    product(one, other).block_until_ready()
    taken = [
        timing.seconds(lambda: product(one, other), times=3) for _ in range(repeats)
    ]
    return 2 * side**3 / min(taken)


def _copy(copy_bytes: int, repeats: int) -> float:
    values = [jnp.zeros(copy_bytes // 4, jnp.float32)]
    # Adding one is a copy as far as memory goes; XLA leaves a plain one out. In place:
    # memory that is new to the process would first have to be found.
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)

    def copy() -> jax.Array:
        values[0] = add_one(values[0])
        return values[0]

    copy().block_until_ready()
    taken = [timing.seconds(copy, times=3) for _ in range(repeats)]
    return 2 * values[0].nbytes / min(taken)
