"""scikit-learn's figures from the predictions table; what is undefined is None."""

from typing import Any

import numpy as np
from sklearn import metrics

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.evaluation.predictions import Predictions

THRESHOLD = 0.5  # an image is called ALL if P(ALL) is above it


def figures(predictions: Predictions) -> dict[str, Any]:
    """Returns the figures by image, at threshold 0.5, with ALL as positive class.

    Args:
      predictions: rows of one split, at least one.

    Returns:
      `accuracy`, `weighted_f1` (the challenge's figure), `balanced_accuracy`, `auroc`,
      `sensitivity` and `specificity` in [0, 1] or None where a class is missing;
      `num_images`, `num_patients`; and `confusion_matrix` in the paper's order,
      [[ALL→ALL, ALL→HEM], [HEM→ALL, HEM→HEM]].
    """
    label, probability = predictions.cells.label, predictions.probability
    called = np.where(probability > THRESHOLD, ALL, HEM)
    matrix = metrics.confusion_matrix(label, called, labels=[ALL, HEM])
    both = len(np.unique(label)) == 2
    return {
        "accuracy": float(metrics.accuracy_score(label, called)),
        "weighted_f1": float(metrics.f1_score(label, called, average="weighted")),
        "balanced_accuracy": (
            float(metrics.balanced_accuracy_score(label, called)) if both else None
        ),
        "auroc": float(metrics.roc_auc_score(label, probability)) if both else None,
        "sensitivity": _recall(label, called, ALL),
        "specificity": _recall(label, called, HEM),
        "num_images": len(label),
        "num_patients": len(np.unique(predictions.cells.patient)),
        "confusion_matrix": matrix.tolist(),
    }


def _recall(label: np.ndarray, called: np.ndarray, value: int) -> float | None:
    """Returns the share of a class that is called rightly."""
    if not np.any(label == value):
        return None
    return float(metrics.recall_score(label, called, pos_label=value))
