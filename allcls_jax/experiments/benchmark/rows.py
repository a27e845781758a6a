"""All rows by the name that `--rows` knows them by, in the order of the table."""

from collections.abc import Callable, Iterator

from allcls_jax.experiments.benchmark import (
    rows_data,
    rows_forward,
    rows_process,
    rows_training,
    rows_tuning,
)
from allcls_jax.experiments.benchmark.bench import Bench
from allcls_jax.experiments.benchmark.record import Row

ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "recipe": rows_training.whole_recipe,
    "forward": rows_forward.forward,
    "heads": rows_training.heads,
    "fine-tuning": rows_tuning.fine_tuning,
    "second-run": rows_process.second_run,
    "help": rows_process.start,
    "packing": rows_data.packing,
    "audit": rows_data.audit,
    "prediction": rows_forward.prediction,
    "memory": rows_process.growth,
}
