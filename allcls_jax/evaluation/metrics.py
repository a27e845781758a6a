"""Point figures of the predictions table, scikit-learn's; what is undefined says why.

An image is called ALL if P(ALL) is above the threshold, strictly. PPV and NPV are not
those of the sample, whose share of ALL is nobody's, but at a stated prevalence.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.evaluation import calibration, cox
from allcls_jax.evaluation.predictions import Predictions

THRESHOLD = 0.5

# Of calls, of the order of probabilities, and of the probabilities themselves.
CALL_NAMES = (
    "accuracy",
    "balanced_accuracy",
    "weighted_f1",
    "mcc",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
)
RANK_NAMES = ("auroc", "average_precision")
PROBABILITY_NAMES = ("brier", "ece", "calibration_slope", "calibration_intercept")

NAMES = (
    "accuracy",
    "balanced_accuracy",
    "weighted_f1",
    "auroc",
    "average_precision",
    "mcc",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    *PROBABILITY_NAMES,
)

_REASONS = {
    "ppv": "no image is called ALL",
    "npv": "no image is called HEM",
    "calibration_slope": (
        "a cut of P(ALL) separates the classes, or nearly so, or it is constant"
    ),
}

# Which classes a figure is undefined without.
_NEEDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(NAMES, (ALL, HEM)),
    **dict.fromkeys(("accuracy", "weighted_f1", "brier", "ece", "log_loss"), ()),
    "sensitivity": (ALL,),
    "specificity": (HEM,),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Undefined:
    """What stands for a figure that has no value."""

    reason: str


def figures(predictions: Predictions, *, prevalence: float = 0.5) -> dict[str, Any]:
    """Returns the figures by image, at threshold 0.5, with ALL as positive class.

    Args:
      predictions: rows of one split and one pass, each image once; may be none.
      prevalence: share of ALL that PPV and NPV are stated for, in (0, 1).

    Returns:
      A number or None for each of `NAMES`; `undefined`, name → reason of each None;
      `num_images`, `num_patients`, `num_groups`; and `confusion_matrix` in the paper's
      order, [[ALL→ALL, ALL→HEM], [HEM→ALL, HEM→HEM]].
    """
    measured = measure(
        predictions.label, predictions.probability, prevalence=prevalence
    )
    return {
        **{name: number(value) for name, value in measured.items()},
        "undefined": {
            name: value.reason
            for name, value in measured.items()
            if isinstance(value, Undefined)
        },
        "num_images": len(predictions),
        "num_patients": len(np.unique(predictions.patient)),
        "num_groups": len(np.unique(predictions.group)),
        "confusion_matrix": confusion_matrix(
            predictions.label, predictions.probability > THRESHOLD
        ),
    }


def measure(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    called: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    names: Sequence[str] = NAMES,
    prevalence: float = 0.5,
) -> dict[str, float | Undefined]:
    """Returns figures of weighted images.

    Args:
      label: (n,) ALL or HEM.
      probability: (n,) P(ALL).
      called: (n,) bool, whether an image is called ALL; by default at `THRESHOLD`.
      weight: (n,) positive; by default 1 each.
      names: of `NAMES`, or `log_loss`.
      prevalence: share of ALL that PPV and NPV are stated for, in (0, 1).
    """
    called = probability > THRESHOLD if called is None else called
    weight = np.ones(len(label)) if weight is None else weight
    calls = np.where(called, ALL, HEM)
    rates = [
        metrics.recall_score(label, calls, pos_label=value, sample_weight=weight)
        if np.any(label == value)
        else np.nan
        for value in (ALL, HEM)
    ]
    result: dict[str, float | Undefined] = {}
    for name in names:
        if reason := lacks(name, label):
            result[name] = Undefined(reason)
        elif name in ("sensitivity", "specificity"):
            result[name] = float(rates[name == "specificity"])
        elif name in ("ppv", "npv"):
            both = predictive_values(np.array(rates[0]), np.array(rates[1]), prevalence)
            result[name] = _or_undefined(name, float(both[name == "npv"]))
        else:
            value = _figure(name, label, probability, calls, weight)
            result[name] = _or_undefined(name, value)
    return result


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns PPV and NPV by Bayes' rule, NaN where nothing is so called.

    Args:
      sensitivity: any shape, in [0, 1].
      specificity: likewise.
      prevalence: share of ALL, in (0, 1).
    """
    right, wrong = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, cleared = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    with np.errstate(invalid="ignore"):
        return right / (right + wrong), cleared / (cleared + missed)


def lacks(name: str, label: np.ndarray) -> str | None:
    """Returns why a figure is undefined for these labels (n,), or None."""
    if not len(label):
        return "there are no images"
    for value, title in ((ALL, "ALL"), (HEM, "HEM")):
        if value in _NEEDS[name] and not np.any(label == value):
            return f"no image is {title}"
    return None


def number(value: float | Undefined) -> float | None:
    """Returns a figure as JSON has it."""
    return None if isinstance(value, Undefined) else value


def confusion_matrix(label: np.ndarray, called: np.ndarray) -> list[list[int]]:
    """Returns [[ALL→ALL, ALL→HEM], [HEM→ALL, HEM→HEM]] of labels and calls (n,)."""
    return [
        [int(np.sum((label == actual) & (called == call))) for call in (True, False)]
        for actual in (ALL, HEM)
    ]


def _or_undefined(name: str, value: float) -> float | Undefined:
    return Undefined(_REASONS[name]) if np.isnan(value) else float(value)


def _figure(
    name: str,
    label: np.ndarray,
    probability: np.ndarray,
    calls: np.ndarray,
    weight: np.ndarray,
) -> float:
    """Returns one figure of calls (n,) ALL or HEM; NaN where it is undefined."""
    match name:
        case "accuracy":
            value = metrics.accuracy_score(label, calls, sample_weight=weight)
        case "balanced_accuracy":
            value = metrics.balanced_accuracy_score(label, calls, sample_weight=weight)
        case "weighted_f1":
            value = metrics.f1_score(
                label, calls, average="weighted", sample_weight=weight
            )
        case "mcc" if len(np.unique(calls)) == 1:
            # scikit-learn says so too, save where weights are rounded.
            value = 0.0
        case "mcc":
            value = metrics.matthews_corrcoef(label, calls, sample_weight=weight)
        case "auroc":
            value = metrics.roc_auc_score(label, probability, sample_weight=weight)
        case "average_precision":
            value = metrics.average_precision_score(
                label, probability, sample_weight=weight
            )
        case "brier":
            value = metrics.brier_score_loss(
                label, probability, sample_weight=weight, pos_label=ALL
            )
        case "log_loss":
            clipped = np.clip(probability, cox.EPSILON, 1 - cox.EPSILON)
            value = metrics.log_loss(
                label, clipped, sample_weight=weight, labels=[HEM, ALL]
            )
        case "ece":
            value = calibration.expected_calibration_error(
                label, probability, weight[None]
            )[0]
        case "calibration_slope":
            value = cox.slope(label, probability, weight[None])[0]
        case "calibration_intercept":
            value = cox.intercept(label, probability, weight[None])[0]
        case _:
            raise AssertionError(name)
    return float(value)
