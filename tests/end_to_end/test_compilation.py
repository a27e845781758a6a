"""What was compiled once is not compiled again, within a run or in the next one."""

import json
from pathlib import Path

import pytest

from tests.end_to_end import command

# Runs the entry point and tells what JAX has compiled and what it has found compiled.
WATCHED = """
import collections, json, sys
import jax
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name]))
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: seen.update([name])
)
from allcls_jax import main
try:
    main.main()
except SystemExit as end:
    assert not end.code, end.code
with open("events.json", "w") as file:
    json.dump(seen, file)
"""
MISSES = "/jax/compilation_cache/cache_misses"
HITS = "/jax/compilation_cache/cache_hits"
COMPILED = "/jax/core/compile/backend_compile_duration"


def events(folder: Path, *flags: str) -> dict[str, int]:
    """Runs the tiny configuration and returns how often what happened in JAX."""
    result = command.python(folder, "-c", WATCHED, *command.TINY, *flags)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "events.json").read_text())


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is kept where the program keeps it, not where the tests do."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


KINDS = {"heads": (), "whole": ("--config.train.cache_features=false",)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_of_more_epochs_compiles_nothing(tmp_path, kind):
    """58 images in batches of 16: the last one of an epoch is short."""
    flags = (*KINDS[kind], "--config.train.batch_size=16")
    first = events(tmp_path, *flags, "--workdir=one")
    assert first[MISSES] > 5
    again = events(tmp_path, *flags, "--config.train.num_epochs=9", "--workdir=two")
    assert again[HITS] > 3
    assert again.get(MISSES, 0) == 0
    # Nor is anything looked up anew from epoch to epoch. Features are there already.
    forward = kind == "heads"
    assert again[COMPILED] <= first[COMPILED] - forward
