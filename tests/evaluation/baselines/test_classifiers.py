"""The classifiers of the baselines, on numbers whose answer is known."""

from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from allcls_jax.evaluation.baselines import classifiers

FITS = {
    "share": classifiers.fit_share,
    "logistic": classifiers.fit_logistic,
    "regularised": classifiers.fit_regularised,
    "svm": classifiers.fit_svm,
}
LEARNING = {name: fit for name, fit in FITS.items() if name != "share"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several would only wait for each other."""
    with threadpool_limits(limits=1):
        yield


def patients(
    *, number: int = 12, images: int = 20, effect: float = 0.0, width: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Figures, labels and groups; the first figure tells the classes apart.

    Args:
      number: of patients, half of them ALL.
      images: of each.
      effect: standard deviation between patients of the other figures.
      width: figures.
    """
    rng = np.random.default_rng(0)
    group = np.repeat([f"p{i:02}" for i in range(number)], images)
    label = np.repeat(np.arange(number) % 2, images)
    values = rng.normal(size=(len(label), width))
    values[:, 0] += 2 * label
    own = effect * rng.normal(size=(number, width - 1))
    values[:, 1:] += np.repeat(own, images, axis=0)
    return values, label, group


def test_the_majority_is_the_share_of_all():
    label = np.array([1, 1, 1, 0])
    predict = classifiers.fit_share(np.zeros((4, 0)), label, np.array(list("abcd")))
    np.testing.assert_array_equal(predict(np.zeros((3, 0))), [0.75] * 3)


def test_a_logistic_regression_of_two_values_gives_their_shares():
    """Unpenalised it would give 1/4 and 3/4; C = 1 draws them in a little."""
    values = np.repeat([[0.0], [1.0]], 400, axis=0)
    label = np.repeat([0, 1, 0, 1], [300, 100, 100, 300])
    predict = classifiers.fit_logistic(values, label, np.zeros(800, str))
    np.testing.assert_allclose(
        predict(np.array([[0.0], [1.0]])), [0.25, 0.75], atol=0.002
    )


def test_figures_that_never_vary_give_everybody_the_share():
    label = np.repeat([0, 1], [30, 90])
    group = np.array([f"p{i}" for i in range(120)])
    predict = classifiers.fit_logistic(np.zeros((120, 5)), label, group)
    found = predict(np.zeros((4, 5)))
    np.testing.assert_allclose(found, 0.75, atol=1e-4)
    assert len(set(found.tolist())) == 1


@pytest.mark.parametrize("fit", LEARNING.values(), ids=LEARNING)
def test_what_tells_the_classes_apart_is_learned(fit):
    values, label, group = patients()
    train = np.arange(len(label)) % 20 < 10
    predict = fit(values[train], label[train], group[train])
    found = predict(values[~train])
    assert np.all((found >= 0) & (found <= 1))
    assert roc_auc_score(label[~train], found) > 0.85
    assert np.mean((found > 0.5) == label[~train]) > 0.78


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_the_same_images_give_the_same_bits(fit):
    values, label, group = patients(width=6)
    one, two = (fit(values, label, group)(values) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("fit", LEARNING.values(), ids=LEARNING)
def test_the_unit_of_a_figure_does_not_matter(fit):
    values, label, group = patients(width=3)
    scale = np.array([1e6, 1.0, 1e-3])
    expected = fit(values, label, group)(values)
    found = fit(values * scale + 5, label, group)(values * scale + 5)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_no_image_has_no_prediction(fit):
    values, label, group = patients()
    assert fit(values, label, group)(values[:0]).shape == (0,)


@pytest.mark.parametrize("fit", LEARNING.values(), ids=LEARNING)
@pytest.mark.parametrize("spread", [1, 2])
def test_one_group_of_a_class_is_enough(fit, spread):
    values, label, _ = patients()
    group = np.where(
        label == 1, "a", np.array(["b", "c"])[np.arange(len(label)) % spread]
    )
    found = fit(values, label, group)(values)
    assert roc_auc_score(label, found) > 0.85


def test_inner_folds_keep_groups_whole_and_hold_everybody_out_once():
    _, label, group = patients(number=14)
    folds = classifiers.inner_folds(label, group)
    assert len(folds) == 3
    held = np.concatenate([rows for _, rows in folds])
    np.testing.assert_array_equal(np.sort(held), np.arange(len(label)))
    for fitted, rows in folds:
        assert not set(group[fitted]) & set(group[rows])
        assert set(label[fitted]) == {0, 1}


def test_there_are_as_many_inner_folds_as_groups_of_a_class():
    label = np.repeat([0, 1], [30, 50])
    group = np.concatenate([np.repeat(["a", "b"], 15), np.repeat(list("cdefg"), 10)])
    assert len(classifiers.inner_folds(label, group)) == 2
    assert classifiers.inner_folds(label, np.where(group < "c", "a", group)) == []


def test_regularisation_is_chosen_on_whole_patients():
    """Figures of the patients' own look perfect on images and fail on new patients."""
    rng = np.random.default_rng(1)
    values, label, group = patients(number=20, images=15, effect=3.0, width=80)
    new, expected, _ = patients(number=20, images=15, width=80)
    new[:, 1:] += np.repeat(3 * rng.normal(size=(20, 79)), 15, axis=0)
    grouped = classifiers.fit_regularised(values, label, group)
    by_image = classifiers.fit_regularised(
        values, label, np.array([str(i) for i in range(len(label))])
    )

    def loss(probability: np.ndarray) -> float:
        right = np.where(expected == 1, probability, 1 - probability)
        return float(-np.mean(np.log(np.maximum(right, 1e-12))))

    assert loss(grouped(new)) < 0.8 * loss(by_image(new))


def test_probabilities_of_the_support_vector_machine_are_scaled_on_held_out_patients():
    """Scores of its own training images would promise far more than it keeps."""
    rng = np.random.default_rng(2)
    values, label, group = patients(number=16, images=12, effect=2.0, width=30)
    values[:, 0] -= 2 * label  # nothing is left to learn but who is who
    new = rng.normal(size=(400, 30)) * np.sqrt(5)
    spread = np.std(classifiers.fit_svm(values, label, group)(new))
    alone = np.where(label == 1, "a", "b")
    naive = np.std(classifiers.fit_svm(values, label, alone)(new))
    assert spread < 0.75 * naive
