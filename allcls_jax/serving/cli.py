"""The command `allcls`: one verb for each thing to be done with cells and models.

A verb is a module with `parser()` and `main(argv)`; only that of the verb is imported,
so that the list of verbs need not wait for JAX.
"""

import argparse
import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence

import shtab

from allcls_jax import __version__
from allcls_jax.command_line import Parser, run
from allcls_jax.errors import InputError


@dataclasses.dataclass(frozen=True, slots=True)
class Verb:
    """One thing that `allcls` does.

    Attributes:
      module: has `parser()` and `main(argv)`.
      what: it does, in a few words.
      words: put before those of the user.
    """

    module: str
    what: str
    words: tuple[str, ...] = ()


_TRAIN = "allcls_jax.serving.train"

# In the order in which a newcomer needs them.
VERBS = {
    "train": Verb(_TRAIN, "train a classifier and test it"),
    "predict": Verb("allcls_jax.serving.predict", "P(ALL) of every image of a folder"),
    "explain": Verb("allcls_jax.serving.explain", "show where the model looks"),
    "serve": Verb("allcls_jax.serving.serve", "a page on this machine, and a JSON API"),
    "segment": Verb("allcls_jax.serving.segment", "from microscope fields to cells"),
    "export": Verb("allcls_jax.serving.export", "ONNX, StableHLO, safetensors, Keras"),
    "audit": Verb("allcls_jax.data.audit", "find broken files, twins, shared patients"),
    "evaluate": Verb(_TRAIN, "test a trained run on other cells", ("--mode=evaluate",)),
    "baselines": Verb(
        "allcls_jax.evaluation.baselines.evaluate", "simple classifiers beside a run"
    ),
    "report": Verb(
        "allcls_jax.evaluation.report.write", "a run on one page, and its model card"
    ),
    "augment": Verb(
        "allcls_jax.data.augmentation_sheet", "show how training images are varied"
    ),
    "prepare": Verb("allcls_jax.data.prepare", "pack cells once"),
    "convert": Verb("allcls_jax.models.convert", "read VGG weights of Keras or torch"),
    "benchmark": Verb(
        "allcls_jax.experiments.benchmark.command", "measure speed beside peers"
    ),
}

SHELLS = ("bash", "zsh", "tcsh")

_WHAT = "Is this white blood cell a leukemic lymphoblast (ALL) or a normal cell (HEM)?"
_EXAMPLE = """\
allcls train --config vgg19:smoke --workdir RUN
allcls predict RUN ~/cells --out predictions.csv
allcls VERB --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb: `allcls VERB …`. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and (verb := VERBS.get(words[0])):
        return importlib.import_module(verb.module).main([*verb.words, *words[1:]])
    return run(lambda: _without_verb(words))


def completion(shell: str) -> str:
    """Returns a script that completes verbs, options and files in a shell.

    Args:
      shell: `bash`, `zsh` or `tcsh`.
    """
    whole = Parser("", "", "")
    verbs = whole.add_subparsers(parser_class=argparse.ArgumentParser)
    for name, verb in VERBS.items():
        own: Parser = importlib.import_module(verb.module).parser()
        # Wherever a value is not one of a few, it may be a file.
        for action in own._actions:
            if action.choices is None and action.nargs != 0:
                setattr(action, "complete", shtab.FILE)  # noqa: B010 (shtab's way)
        verbs.add_parser(name, help=verb.what, parents=[own], add_help=False)
    return shtab.complete(whole, shell)


def _without_verb(words: Sequence[str]) -> None:
    listing = "\n".join(f"  {name:<10} {verb.what}" for name, verb in VERBS.items())
    parser = Parser("", _WHAT, _EXAMPLE)
    parser.usage = f"allcls VERB …\n\nverbs:\n{listing}"
    parser.add_argument("--version", action="version", version=f"allcls {__version__}")
    parser.add_argument(
        "--completion",
        choices=SHELLS,
        help="print what makes that shell complete verbs, options and files",
    )
    options, rest = parser.parse_known_args(words)
    if rest:
        near = difflib.get_close_matches(rest[0], VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"verbs: {', '.join(VERBS)}"
        raise InputError(f"{rest[0]}: no such verb; {hint}")
    if options.completion:
        sys.stdout.write(completion(options.completion))
    else:
        parser.print_help()
