import numpy as np

from allcls_jax.evaluation.ranking import at_shares, dot, rank


def test_equal_scores_make_one_block():
    ranking = rank(np.array([0.2, 0.9, 0.2, 0.5, 0.9]))
    assert ranking.order.tolist() == [1, 4, 3, 0, 2]
    assert ranking.ends.tolist() == [2, 3, 5]


def test_sums_are_over_the_first_blocks_of_each_weighting():
    ranking = rank(np.array([0.2, 0.9, 0.2, 0.5, 0.9]))
    weights = np.array([[1.0, 2, 4, 8, 16], [1, 0, 1, 0, 1]])
    assert ranking.sums(weights).tolist() == [[0, 18, 26, 31], [0, 1, 1, 3]]


def test_sums_without_equal_scores():
    ranking = rank(np.array([0.1, 0.3, 0.2]))
    assert ranking.sums(np.array([[1.0, 10, 100]])).tolist() == [[0, 10, 110, 111]]


def test_a_block_that_a_share_divides_counts_in_part():
    ranking = rank(np.array([3.0, 2, 2, 2, 2, 1]))
    weight = ranking.sums(np.ones((1, 6)))
    value = ranking.sums(np.array([[5.0, 1, 0, 0, 1, 0]]))
    found = at_shares(weight, value, np.array([0, 1 / 6, 1 / 2, 1]))
    np.testing.assert_allclose(found, [[0, 5, 6, 7]])


def test_the_order_of_equal_scores_is_of_no_account():
    rng = np.random.default_rng(0)
    score, value = rng.integers(4, size=50).astype(float), rng.normal(size=50)
    shuffled = rng.permutation(50)
    found = []
    for order in (np.arange(50), shuffled):
        ranking = rank(score[order])
        weights = np.ones((1, 50))
        found.append(
            at_shares(
                ranking.sums(weights),
                ranking.sums(weights * value[order]),
                np.linspace(0, 1, 7),
            )
        )
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)


def test_dot_is_the_sum_of_products():
    rng = np.random.default_rng(1)
    weights, value = rng.random((3, 40)), rng.random((3, 40))
    np.testing.assert_allclose(dot(weights, value[0]), weights @ value[0])
    np.testing.assert_allclose(dot(weights, value), (weights * value).sum(1))
