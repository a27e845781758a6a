"""The worker's side of a measurement: one peer, in a process of its own.

Nothing here is imported by the process that compares; peers are imported by name, since
none of them is needed to use or to develop the package.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from allcls_jax.experiments.benchmark import (
    peer_networks,
    peer_recipes,
    peer_tools,
    peer_tuning,
)
from allcls_jax.experiments.benchmark.peer_networks import Ready, Settings
from allcls_jax.experiments.benchmark.record import NOT_INSTALLED
from allcls_jax.experiments.benchmark.workers import Unavailable


def main(argv: Sequence[str] | None = None) -> int:
    """Measures as long as it is asked: `peers SETTINGS.json`. Returns the exit code."""
    (file,) = sys.argv[1:] if argv is None else argv
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    # Libraries write on standard output what they like; answers go where it was.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def tell(answer: dict[str, Any]) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        try:
            ready, answer = _prepare(settings)
            tell(ready)
            for line in sys.stdin:
                tell(answer(json.loads(line)))
        except Unavailable as reason:
            tell({"unavailable": str(reason)})
            return 1
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _PACKAGES:
                raise
            tell({"unavailable": NOT_INSTALLED})
            return 1
    return 0


_PACKAGES = ("cv2", "keras", "onnx", "onnxruntime", "PIL", "torch")


def _prepare(settings: Settings) -> Ready:
    # Before the first import of either. The comparing process, whose turns alternate
    # with ours, needs its part of the device's memory.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    tasks: dict[str, dict[str, Callable[[Settings], Ready]]] = {
        "forward": peer_networks.FORWARD,
        "tuning": peer_tuning.TUNING,
        "recipe": peer_recipes.RECIPES,
        "decode": peer_tools.DECODE,
    }
    return tasks[settings["task"]][settings["peer"]](settings)


if __name__ == "__main__":
    raise SystemExit(main())
