import re

import pytest

from allcls_jax import DISCLAIMER
from allcls_jax.atomic import write_atomically
from allcls_jax.evaluation import plots, plots_curves, plots_rows
from allcls_jax.evaluation.plots_rows import Line, Point
from allcls_jax.evaluation.plots_style import CLASSES, SERIES, to_svg
from tests.evaluation.report_folders import history

PNG = b"\x89PNG\r\n\x1a\n"

CURVE = {
    "fpr": [0, 0.5, 1],
    "tpr": [0, 0.8, 1],
    "low": [0, 0.7, 1],
    "high": [0, 0.9, 1],
}


def figure(label: str = "auroc"):
    return plots_rows.forest(["one", "two"], {"": [Point(0.5)] * 2}, label=label)


def luminance(colour: str) -> float:
    """Relative luminance, of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_run_leaves_png_pictures(tmp_path):
    accuracy = {"by_image": {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}}
    rungs = [{"title": "grouped", "leaky": False, "figures": accuracy}]
    pictures = {
        "curves": plots.curves(history(), "synthetic cells"),
        "matrix": plots.confusion_matrix([[3, 1], [0, 2]], "Test: fold 2", ""),
        "ladder": plots.ladder({"rungs": rungs, "paper": {"accuracy": 0.9919}}, ""),
    }
    for name, png in pictures.items():
        assert png.startswith(PNG), name
        write_atomically(tmp_path / f"{name}.png", png)
        assert (tmp_path / f"{name}.png").read_bytes() == png
    assert len(list(tmp_path.iterdir())) == len(pictures)


def test_the_same_input_gives_the_same_bytes():
    assert plots.curves(history(), "a note") == plots.curves(history(), "a note")
    one, two = (to_svg(figure(), name="x", title="t") for _ in range(2))
    assert one == two


def test_an_svg_carries_note_disclaimer_and_what_the_blind_are_told():
    svg = to_svg(figure(), name="x", title='A "quoted" <title>', note="leaky: shared")
    assert f">{DISCLAIMER}<" in svg
    assert ">leaky: shared<" in svg
    assert 'A "quoted" &lt;title&gt;' in svg or "A &quot;quoted&quot; &lt;" in svg


def test_an_svg_can_stand_beside_another_one():
    one, two = (to_svg(figure(), name=name, title="t") for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, known in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= known


def test_an_svg_holds_no_time_and_no_address():
    svg = to_svg(figure(), name="x", title="t")
    assert svg.startswith("<svg ")
    assert "metadata" not in svg
    assert "matplotlib.org" not in svg
    assert "http:" not in svg
    assert "https:" not in svg


def test_names_are_text_and_nothing_but_text():
    rows = [
        {"patient": name, "images": 3, "mean_probability": 0.7, "label": 1}
        for name in ("$a$", "<b>&", "x" * 40)
    ]
    svg = to_svg(plots_rows.patients(rows, "ALL"), name="x", title="t")
    assert ">$a$<" in svg
    assert ">&lt;b&gt;&amp;<" in svg
    assert f">{'x' * 17}…<" in svg


def test_what_is_undefined_is_not_drawn():
    def marks(points: list[Point]) -> int:
        drawn = plots_rows.forest(["a", "b"], {"x": points, "y": points}, label="l")
        return to_svg(drawn, name="x", title="t").count("<use ")

    assert marks([Point(0.5, 0.4, 0.6), Point(None)]) < marks(
        [Point(0.5, 0.4, 0.6)] * 2
    )


def test_a_reference_is_drawn_and_named():
    drawn = plots_rows.forest(
        ["a"], {"x": [Point(0.5)]}, label="l", line=Line(0.9919, "the paper's 99.19 %")
    )
    assert "the paper's 99.19 %" in to_svg(drawn, name="x", title="t")


def test_overlaid_curves_have_a_colour_and_a_style_each():
    svg = to_svg(plots_curves.roc({"A": CURVE, "B": CURVE}), name="x", title="t")
    assert {">A<", ">B<"} <= set(re.findall(r">\w<", svg))
    for colour, _, _ in SERIES[:2]:
        assert colour.lower() in svg.lower()


def test_no_two_series_look_alike_in_colour_marker_or_style():
    for column in zip(*SERIES, strict=True):
        assert len(set(map(str, column))) == len(SERIES)
    (one, first), (other, second) = CLASSES["ALL"], CLASSES["HEM"]
    assert first != second
    # Told apart in grey as well.
    assert abs(luminance(one) - luminance(other)) > 0.05


def test_gaps_in_a_band_are_left_open():
    curve = {**CURVE, "low": [None, 0.7, 1], "high": [None, 0.9, 1]}
    assert "nan" not in to_svg(plots_curves.roc({"": curve}), name="x", title="t")


@pytest.mark.parametrize("count", [1, 30, 200])
def test_patients_of_any_number_fit_a_printed_page(count: int):
    rows = [
        {"patient": f"p{row}", "images": 1 + row, "mean_probability": row / count}
        for row in range(count)
    ]
    drawn = plots_rows.patients(rows, "HEM")
    assert drawn.get_figheight() < 12
    assert ("p0" in to_svg(drawn, name="x", title="t")) == (count < 130)
