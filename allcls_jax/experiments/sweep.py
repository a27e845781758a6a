"""Recipes compared by cross-validation among the patients that no test will ask for.

Whoever the configuration's own split tests, and whoever shares cells with them, is left
out before anything is divided; so the choice owes nothing to the test images. A sweep
is a folder of cross-validations, one for each candidate, all of the same patients,
folds, seeds and repeats.
"""

import contextlib
import copy
import gc
import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allcls_jax import terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.config import Config, ExperimentKind, SplitKind
from allcls_jax.config_files import override
from allcls_jax.config_rules import validate
from allcls_jax.data import left_out
from allcls_jax.errors import InputError, list_problems
from allcls_jax.experiments import sweep_ranking
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.cross_validation import cross_validate
from allcls_jax.experiments.setup import Data, open_data
from allcls_jax.experiments.sweep_ranking import BASE, LEFT_OUT_FILE
from allcls_jax.training import sharding

# What a candidate may set. The rest says who is trained and tested, and how figures are
# reported, which must be the same for all.
_FREE = ("augment.", "model.", "optim.", "train.")
_FREE += ("data.image_size", "data.pack_size", "data.crop", "evaluation.views")

# What is raised where a device's or this machine's memory is not enough.
_OUT_OF_MEMORY = (jax.errors.JaxRuntimeError, MemoryError)


def sweep(config: Config, workdir: Path) -> bool:
    """Cross-validates each candidate without the test patients, and ranks them.

    Args:
      config: validated; its split says who is left out: all whom a held-out part
        tests, or those of `data.test_fold`.
      workdir: gets `left_out.json`, a cross-validation's folder for each candidate, and
        `ranking.json`, `.csv` and `.md`.

    Returns:
      Whether it came to its end; if not, a signal stopped it and the same call goes on.

    Raises:
      InputError: if candidates, data, weights or the workdir cannot be used, or no
        candidate came to its end.
    """
    started = time.monotonic()
    recipes = candidates(config)
    data = open_data(config)
    sharding.on_first_process(lambda: folder.check(workdir, data.config))
    names, told = _left_out(data)
    with contextlib.ExitStack() as claimed:
        claim = folder.claim(workdir, data.config)
        sharding.on_first_process(lambda: claimed.enter_context(claim))
        file = workdir / LEFT_OUT_FILE
        text = left_out.to_json(names)
        sharding.on_first_process(lambda: write_atomically(file, text))
        told["rest"] = _rest(_child(config, workdir))
        terminal.say(sweep_ranking.explained(told))
        failed: dict[str, str] = {}
        for number, (name, recipe) in enumerate(recipes.items(), 1):
            settings = " ".join(settings_of(config)[name])
            terminal.say(f"\nCandidate {number} of {len(recipes)}: {name} {settings}\n")
            try:
                if not cross_validate(_child(recipe, workdir), workdir / name):
                    return False
            except InputError as error:
                failed[name] = str(error)
            except _OUT_OF_MEMORY as error:
                if jax.process_count() > 1:
                    raise  # the others wait for this one, and would for ever
                failed[name] = _in_short(error)
            if name in failed:
                terminal.warn(f"{name} is left out of the ranking: {failed[name]}")
                gc.collect()  # what it held is not in the next one's way
        sharding.on_first_process(
            lambda: sweep_ranking.conclude(
                workdir,
                settings_of(config),
                failed,
                told,
                num_resamples=config.evaluation.num_resamples,
                seconds=time.monotonic() - started,
            )
        )
    return True


def candidates(config: Config) -> dict[str, Config]:
    """Returns the configuration of each candidate by its name, the base first.

    Raises:
      InputError: naming everything that is wrong with any of them.
    """
    problems = [*_misshapen(config)]
    found = {BASE: config}
    for name, settings in {} if problems else settings_of(config).items():
        recipe = config
        wrong = len(problems)
        for setting in settings:
            try:
                if not setting.strip().startswith(_FREE):
                    override(config, setting)  # of a misspelt one this tells more
                    raise InputError(
                        f"{setting}: who is trained and tested, and how figures are "
                        "reported, is the same for all candidates"
                    )
                recipe = override(recipe, setting)
            except InputError as error:
                problems.append(f"{name}: {error}")
        if len(problems) > wrong:
            continue
        try:
            found[name] = validate(recipe)
        except InputError as error:
            lines = str(error).splitlines()[1:]
            problems += (f"{name}: {line.removeprefix('  - ')}" for line in lines)
    if problems:
        raise list_problems(
            "the sweep cannot work",
            problems,
            remedy=f"Candidates may set {', '.join(_FREE)}; mend experiment.candidates",
        )
    return found


def settings_of(config: Config) -> dict[str, tuple[str, ...]]:
    """Returns what each candidate sets, the base first."""
    return {BASE: ()} | dict(config.experiment.candidates)


def _in_short(error: Exception) -> str:
    """Returns what a runtime says, in one line."""
    first = next(iter(str(error).splitlines()), "") or "out of memory"
    return f"{type(error).__name__}: {textwrap.shorten(first, 160, placeholder=' …')}"


def _misshapen(config: Config) -> Iterator[str]:
    """Yields what is wrong with split, names and shape of the candidates."""
    if config.data.split is not None and config.data.split.leaky:
        yield (
            f"data.split = {str(config.data.split)!r}: by image no patient is left for "
            "a test; set 'held_out', 'official' or 'grouped'"
        )
    given = config.experiment.candidates
    if not given:
        yield (
            "experiment.candidates = (): there is nothing to compare with; give "
            '(("wide", ("model.dropout=0.2",)),)'
        )
    seen = {BASE}
    for entry in given:
        match entry:
            case (str() as name, tuple() | list() as settings) if all(
                isinstance(setting, str) for setting in settings
            ):
                # In every file system; without a dot none is a file of the sweep's.
                if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,63}", name, re.ASCII):
                    yield (
                        f"{name!r}: a name is a folder's: up to 64 letters, digits, "
                        "_ and -"
                    )
                elif name.lower() in seen:
                    yield f"{name}: stands there twice; {BASE} is taken"
                seen.add(name.lower())
            case _:
                yield f'{entry!r}: must be (name, ("section.field=value", …))'


def _child(recipe: Config, workdir: Path) -> Config:
    """Returns the configuration of a candidate's cross-validation."""
    child = copy.deepcopy(recipe)
    child.experiment.kind = ExperimentKind.CROSS_VALIDATION
    child.experiment.candidates = ()
    child.data.split, child.data.test_fold = SplitKind.GROUPED, 0
    child.data.without = str(workdir / LEFT_OUT_FILE)
    return child


def _left_out(data: Data) -> tuple[list[str], dict[str, Any]]:
    """Returns the patients who take no part, and a record of why."""
    partition = data.partition(data.config)
    group, patient = partition.groups.group, data.table.patient
    joined = np.isin(group, group[partition.test])
    tested = np.unique(patient[partition.test])
    names = np.unique(patient[joined]).tolist()
    told = {
        "test_set": partition.test_name,
        "tested": len(tested),
        "joined": len(names) - len(tested),
        "named": len(data.left_out),
        "images": int(np.sum(joined)),
    }
    return [*names, *data.left_out], told


def _rest(child: Config) -> dict[str, Any]:
    """Returns how the rest is divided; raises `InputError` if it cannot be."""
    data = open_data(child)
    partition = data.partition(data.config)
    rows = np.concatenate([*partition.rows().values()])
    counts = data.table.take(np.sort(rows)).counts()
    return {name: counts[name] for name in ("images", "patients", "ALL", "HEM")} | {
        "folds": child.data.num_folds,
        "seeds": child.experiment.num_seeds,
        "repeats": child.experiment.num_repeats,
    }
