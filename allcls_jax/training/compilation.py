"""Compiled programs are kept from process to process: a second run compiles nothing."""

from pathlib import Path

import jax

# In the cache folder; JAX names each program by a hash of all that it depends on.
_FOLDER = "compiled"


def keep_compiled(cache_dir: Path) -> None:
    """Makes this process keep what it compiles, and use what others have kept.

    Call it where a process starts. A folder that the user has given to JAX itself
    (`JAX_COMPILATION_CACHE_DIR`) is left as it is.

    Args:
      cache_dir: where packed cells, weights and features are kept.
    """
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] # made at run time
    if given is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / _FOLDER))
        # Small programs are many: together they take as long as the large one.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
