"""The picture of a benchmark shows what it is given, and the same each time."""

import numpy as np

from allcls_jax.evaluation.plots_benchmark import advantages
from allcls_jax.evaluation.plots_style import to_png, to_svg

ROWS = ["CPU: VGG19 stack forward", "CPU: the whole recipe, from packed images"]
PEERS = {"torch": [1.25, None], "Keras": [1.5, 14.0]}


def test_each_peer_has_a_point_where_it_was_measured():
    figure = advantages(ROWS, PEERS, [1.0, None])
    (axes,) = figure.axes
    points = {
        str(line.get_label()): np.column_stack([line.get_xdata(), line.get_ydata()])
        for line in axes.lines
        if str(line.get_label()).startswith("against")
    }
    np.testing.assert_array_equal(points["against torch"], [(1.25, 0)])
    np.testing.assert_array_equal(points["against Keras"], [(1.5, 0), (14.0, 1)])
    marks = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 2]
    assert [list(np.asarray(mark)) for mark in marks if np.size(mark)] == [[1.0, 1.0]]
    low, high = axes.get_xlim()
    assert low < 1 < 14 < high


def test_names_and_the_note_are_in_the_picture():
    svg = to_svg(
        advantages(ROWS, PEERS, [1.0, 12.0]), name="b", title="benchmark", note="noted"
    )
    for text in ("stack forward", "against Keras", "must reach", "noted", "10 ×"):
        assert text in svg, text


def test_the_same_figures_give_the_same_bytes():
    first, second = (
        to_png(advantages(ROWS, PEERS, [1.0, 12.0]), "noted") for _ in range(2)
    )
    assert first == second
    other = to_png(advantages(ROWS, {"torch": [2.0, None]}, [1.0, 12.0]), "noted")
    assert first != other


def test_nothing_measured_beside_peers_is_an_empty_picture():
    assert to_png(advantages([], {}, []), "noted").startswith(b"\x89PNG")
