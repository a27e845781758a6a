"""The simple classifiers of the baselines: from figures of images to P(ALL).

Each `fit_…` sees training images alone and returns a function of other images' figures.
Whatever it chooses (regularisation, the scale of its probabilities) it chooses on folds
of the training images in which groups of patients stay whole. The same images give the
same numbers: nothing is drawn but those folds, from a fixed seed.
"""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from allcls_jax.data.cells import ALL, HEM

# (n, d) float64 → P(ALL) (n,) float64.
Predict = Callable[[np.ndarray], np.ndarray]

# Figures (n, d) float64, labels (n,) int64, groups (n,) str.
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Predict]

_INNER_FOLDS = 3

# scikit-learn's C, in the order of preference where they do equally well.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_STRENGTH_UNTESTED = 1e-2


def fit_share(values: np.ndarray, label: np.ndarray, group: np.ndarray) -> Predict:
    """Predicts the share of ALL among the training images, whatever the figures."""
    del values, group
    share = float(np.mean(label == ALL))
    return lambda others: np.full(len(others), share)


def fit_logistic(values: np.ndarray, label: np.ndarray, group: np.ndarray) -> Predict:
    """Logistic regression on a few standardised figures; scikit-learn's C = 1."""
    del group
    return _predict(_logistic(1.0).fit(values, label))


def fit_regularised(
    values: np.ndarray, label: np.ndarray, group: np.ndarray
) -> Predict:
    """Logistic regression on many figures; C has the least log loss on inner folds."""
    folds = inner_folds(label, group)
    best = _STRENGTH_UNTESTED
    if folds:
        losses = [
            np.mean([_held_out_loss(values, label, c, *fold) for fold in folds])
            for c in _STRENGTHS
        ]
        best = _STRENGTHS[int(np.argmin(losses))]
    return _predict(_logistic(best).fit(values, label))


def fit_svm(values: np.ndarray, label: np.ndarray, group: np.ndarray) -> Predict:
    """A support vector machine (RBF kernel, C = 1) on standardised figures.

    Its scores become probabilities by Platt's way, logistic regression on the scores
    of inner folds. Without inner folds the training images' own scores have to do.
    """
    machine = _machine().fit(values, label)
    folds = inner_folds(label, group)
    score = np.empty(len(label))
    for fitted, held in folds:
        inner = _machine().fit(values[fitted], label[fitted])
        score[held] = inner.decision_function(values[held])
    if not folds:
        score = machine.decision_function(values)
    scale = LogisticRegression().fit(score[:, np.newaxis], label)

    def predict(others: np.ndarray) -> np.ndarray:
        if not len(others):
            return np.zeros(0)
        found = machine.decision_function(others)[:, np.newaxis]
        return scale.predict_proba(found)[:, ALL]

    return predict


def inner_folds(
    label: np.ndarray, group: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns how to hold out parts of the training images, groups kept whole.

    Args:
      label: (n,) int64, both classes.
      group: (n,) str.

    Returns:
      (rows to fit, rows held out) of each fold, every row being held out once; empty
      where a class has too few groups for that.
    """
    number = min(len(np.unique(group[label == value])) for value in (ALL, HEM))
    number = min(number, _INNER_FOLDS)
    if number < 2:
        return []
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=0)
    folds = list(splitter.split(label, label, group))
    learnable = all(len(np.unique(label[fitted])) == 2 for fitted, _ in folds)
    return folds if learnable else []


def _logistic(strength: float) -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=2000)
    )


def _machine() -> Pipeline:
    return make_pipeline(StandardScaler(), SVC(C=1.0, kernel="rbf", gamma="scale"))


def _held_out_loss(
    values: np.ndarray,
    label: np.ndarray,
    strength: float,
    fitted: np.ndarray,
    held: np.ndarray,
) -> float:
    model = _logistic(strength).fit(values[fitted], label[fitted])
    return float(
        log_loss(label[held], model.predict_proba(values[held]), labels=[HEM, ALL])
    )


def _predict(model: Pipeline) -> Predict:
    def predict(others: np.ndarray) -> np.ndarray:
        return model.predict_proba(others)[:, ALL] if len(others) else np.zeros(0)

    return predict
