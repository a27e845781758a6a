"""How a page writes figures, counts and settings; None is "undefined", never NaN.

Here too stand the figures that the paper claims.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNDEFINED = "undefined"

# The paper's table 2 and its accuracy.
PAPER_MATRIX = [[2213, 14], [22, 2204]]
PAPER_ACCURACY = 0.9919

CLASSES = {1: "ALL", 0: "HEM", -1: "both"}

# Name in the files → what a reader sees, in the order in which they are shown.
LABELS = {
    "auroc": "AUROC",
    "weighted_f1": "Weighted F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "average_precision": "Average precision",
    "mcc": "MCC",
    "brier": "Brier score",
    "ece": "ECE",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "log_loss": "Log loss",
    "correlation": "Correlation of class and P(ALL)",
    "correlation_with_area": "Correlation of class and area",
    "partial_correlation": "Correlation of class and P(ALL), area held fixed",
}

SPLITS = {
    "held_out": "the preliminary part of the data set held out",
    "official": "the data set's own folds",
    "grouped": "folds drawn by group of patients",
    "image": "by image: patients stand on both sides",
    "image_copies": "by image, after classes were balanced by turned copies",
}


def number(value: float | None, digits: int = 3) -> str:
    """Returns 0.912, or "undefined" for None; minus is a true minus sign."""
    if value is None:
        return UNDEFINED
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Returns +0.034 or −0.012, or "undefined" for None."""
    if value is None:
        return UNDEFINED
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(entry: Mapping[str, Any] | None, prefix: str = "") -> str:
    """Returns 0.87–0.94 of an entry's `low` and `high`; "undefined" without them."""
    if entry is None:
        return UNDEFINED
    low, high = entry.get(f"{prefix}low"), entry.get(f"{prefix}high")
    if low is None or high is None:
        return UNDEFINED
    # A dash beside a minus sign cannot be read.
    between = " to " if low < 0 or high < 0 else "–"
    return f"{number(low)}{between}{number(high)}"


class Value(str):
    """A figure with its interval as text; a table shows them one below the other."""

    value: str
    interval: str

    def __new__(cls, value: str, interval: str) -> "Value":
        """Returns 0.912 (0.87–0.94)."""
        self = super().__new__(cls, f"{value} ({interval})")
        self.value, self.interval = value, interval
        return self


def with_interval(entry: Mapping[str, Any] | None) -> str:
    """Returns 0.912 (0.87–0.94), 0.912 (no interval), or "undefined"."""
    if entry is None or entry.get("value") is None:
        return UNDEFINED
    if entry.get("low") is None or entry.get("high") is None:
        return Value(number(entry["value"]), "no interval")
    return Value(number(entry["value"]), interval(entry))


def count(value: int | None) -> str:
    """Returns 1,867; a dash for None."""
    return "–" if value is None else f"{value:,}"


def percent(share: float, digits: int | None = None) -> str:
    """Returns 95 % of 0.95, or with two digits 99.19 % of 0.9919."""
    if digits is None:
        return f"{100 * share:g}\N{NO-BREAK SPACE}%"
    return f"{number(100 * share, digits)}\N{NO-BREAK SPACE}%"


def label(name: str) -> str:
    """Returns what to call a figure."""
    return LABELS.get(name, name.replace("_", " "))


def ordered(names: Iterable[str]) -> list[str]:
    """Returns names of figures in the order in which they are shown."""
    found = list(names)
    known = [name for name in LABELS if name in found]
    return known + [name for name in found if name not in LABELS]


def span(values: Sequence[float]) -> str:
    """Returns the only value, or the smallest and largest of several."""
    if not values:
        return "–"
    low, high = number(min(values), 2), number(max(values), 2)
    return low if low == high else f"{low} to {high}"


def short_hash(text: str | None, length: int = 12) -> str:
    """Returns the beginning of a long hash."""
    return "–" if not text else text[:length]


def reasons(entries: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Returns why figures, or their intervals, are undefined: a sentence each."""
    found: dict[str, list[str]] = {}
    for name in ordered(entries):
        entry = entries[name] or {}
        if entry.get("value") is None:
            what = "undefined"
        elif entry.get("low") is None and entry.get("reason"):
            what = "no interval"
        else:
            continue
        why = str(entry.get("reason") or "the reason was not recorded")
        found.setdefault(f"{what}, {why}", []).append(label(name))
    return [f"{', '.join(names)}: {why}." for why, names in found.items()]


def reasons_of_rows(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> list[str]:
    """Returns as `reasons` does, for the `figures` of several rows, each once."""
    found: dict[str, None] = {}
    for row in rows:
        chosen = {name: row["figures"].get(name) for name in names}
        found |= dict.fromkeys(reasons(chosen))
    return list(found)
