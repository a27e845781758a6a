import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from allcls_jax import DISCLAIMER
from allcls_jax.config import SyntheticConfig
from allcls_jax.data import prepare
from allcls_jax.errors import InputError
from allcls_jax.evaluation.report import numbers, pictures
from allcls_jax.evaluation.report.write import (
    CLAIM_FILE,
    MODEL_CARD_FILE,
    REPORT_FILE,
    main,
    write_report,
)
from tests.evaluation import report_folders
from tests.evaluation.pages import Page

SECTIONS = (
    "summary",
    "run",
    "data",
    "model",
    "calls",
    "discrimination",
    "calibration",
    "thresholds",
    "patients",
    "spread",
    "subgroups",
    "baselines",
    "ladder",
    "mistakes",
    "learning",
    "settings",
    "glossary",
    "notices",
)

FIGURES = (
    "intervals",
    "confusion",
    "confusion-paper",
    "roc",
    "precision-recall",
    "histogram",
    "reliability",
    "abstention",
    "patients-all",
    "patients-hem",
    "folds",
    "subgroups",
    "baselines",
    "ladder",
    "learning-loss",
    "learning-accuracy",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder of two cross-validations, one with baselines, and a single run."""
    root = tmp_path_factory.mktemp("folders")
    ladder = root / "ladder"
    table = report_folders.cells()
    report_folders.write_cross_validation(ladder / "grouped", table=table)
    report_folders.write_baselines(ladder / "grouped")
    report_folders.write_cross_validation(
        ladder / "image", table=table, skill=2.4, notes=["leaky: patients shared"]
    )
    report_folders.write_ladder(
        ladder, {"grouped": ladder / "grouped", "image": ladder / "image"}
    )
    shutil.copy(ladder / "grouped" / "config.json", ladder)
    report_folders.write_run(
        root / "run", table=table, notes=["synthetic cells", "random backbone weights"]
    )
    return root


@pytest.fixture(scope="module")
def run_page(folders: Path) -> str:
    """The page of a single run on synthetic cells."""
    return text_of(folders / "run")


@pytest.fixture(scope="module")
def whole_page(folders: Path) -> str:
    """The page of a cross-validation that is a rung and has baselines."""
    return text_of(folders / "ladder" / "grouped")


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn and not painted, where a test does not look at them."""

    def to_svg(figure: object, *, name: str, title: str, note: str = "") -> str:
        return f'<svg class="plot" id="{name}"></svg>'

    monkeypatch.setattr(pictures, "to_svg", to_svg)


@pytest.fixture
def own(folders: Path, tmp_path: Path) -> Path:
    """A copy of the folders that a test may change."""
    written = shutil.ignore_patterns("report.html", "*.md")
    return Path(shutil.copytree(folders, tmp_path / "own", ignore=written))


def text_of(workdir: Path, *others: Path) -> str:
    return write_report([workdir, *others]).read_text(encoding="utf-8")


def evaluation_of(workdir: Path) -> dict:
    return json.loads((workdir / "evaluation.json").read_text())


def test_the_page_holds_every_section_and_every_figure(whole_page: str):
    page = Page(whole_page)
    assert not page.unclosed
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    figures = [name[7:] for name in page.ids if name.startswith("figure-")]
    assert sorted(figures) == sorted(FIGURES)


def test_every_figure_tells_the_blind_what_it_shows_and_is_signed(run_page: str):
    html = run_page
    plots = re.findall(r'<svg class="plot".*?</svg>', html, re.S)
    assert len(plots) == len(FIGURES) - 3  # no folds, baselines, ladder
    for svg in plots:
        told = re.search(r'role="img" aria-label="([^"]+)"', svg)
        assert told is not None
        assert len(told[1]) > 20
        assert DISCLAIMER in svg
        if 'id="confusion-paper-' not in svg:
            assert "synthetic cells; random backbone weights" in svg


def test_the_page_fetches_nothing_and_runs_nothing(whole_page: str):
    html = whole_page
    page = Page(html)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"script", "iframe", "object", "embed", "form"} & page.tags.keys()
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    assert not re.findall(r"\son\w+=", html)


def test_every_link_leads_somewhere_and_no_id_is_given_twice(whole_page: str):
    page = Page(whole_page)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids


def test_headings_go_down_one_level_at_a_time(run_page: str):
    levels = [level for level, _ in Page(run_page).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_figures_are_those_of_the_record(folders: Path, run_page: str):
    page = Page(run_page)
    entry = evaluation_of(folders / "run")["figures"]["by_image"]
    values = dict(zip(("auroc", "weighted_f1"), page.classes["value"], strict=False))
    assert values == {name: f"{entry[name]['value']:.3f}" for name in values}
    low, high = entry["auroc"]["low"], entry["auroc"]["high"]
    assert page.classes["interval"][0] == f"{low:.3f}–{high:.3f}"
    (all_all, _), _ = evaluation_of(folders / "run")["confusion_matrix"]
    assert f">{all_all:,}<" in run_page


def test_the_papers_matrix_stands_beside_as_a_claim(run_page: str):
    html = run_page
    for number in ("2,213", "2,204"):
        assert f">{number}<" in html
    assert "A claim of the paper, not measured here" in html
    assert "26,447,682" in html


@pytest.mark.parametrize(
    ("folder", "banner"),
    [
        ("run", ["synthetic cells", "random backbone weights"]),
        ("ladder/image", ["leaky: patients shared"]),
        ("ladder/grouped", []),
    ],
)
@pytest.mark.usefixtures("unpainted")
def test_a_banner_on_top_says_what_must_be_known(
    own: Path, folder: str, banner: list[str]
):
    html = text_of(own / folder)
    page = Page(html)
    if not banner:
        assert "banner" not in page.classes
        return
    assert all(note in page.classes["banner"][0] for note in banner)
    assert html.index('class="banner"') < html.index('id="summary"')


def test_whatever_the_user_has_named_is_escaped(tmp_path: Path):
    evil = "<b>$x$</b>&'\"|`"
    workdir = report_folders.write_run(
        tmp_path / "<i>run</i>",
        table=report_folders.cells(12, prefix=evil),
        notes=["<script>alert(1)</script>"],
    )
    page = Page(text_of(workdir))
    assert not {"b", "i", "script"} & page.tags.keys()
    assert "<script>alert(1)</script>" in page.classes["banner"][0]
    assert any(evil in text for text in page.classes["table"])
    assert any(evil in text for text in page.classes["plot"])
    for name in ("model_card.md", "claim.md"):
        text = (workdir / name).read_text(encoding="utf-8")
        assert "<script>" not in text
        assert "&lt;script&gt;" in text


def test_learning_curves_say_what_training_is_told_of(run_page: str):
    """With mixed images it looks worse than validation."""
    part = run_page[run_page.index('<section id="learning"') :]
    part = part[: part.index("</section>")]
    assert part.count("with dropout, and images varied or mixed") == 2


def test_what_is_left_with_area_held_fixed_stands_beside_the_subgroups(
    folders: Path, run_page: str
):
    held = evaluation_of(folders / "run")["within_area"]
    part = run_page[run_page.index('<section id="subgroups"') :]
    part = part[: part.index("</section>")]
    assert "How much of the score is more than size" in part
    values = [
        numbers.number(held[name]["value"])
        for name in ("auroc", "weighted_f1", "partial_correlation")
    ]
    fixed = re.findall(r"<tr>\s*<th[^>]*>([^<]*)</th>(.*?)</tr>", part, re.DOTALL)
    rows = {name: re.findall(r"(−?\d\.\d{3})", cells) for name, cells in fixed}
    assert [
        rows[name][3]  # after a figure of all cells and its interval
        for name in ("AUROC", "Weighted F1", "Correlation of class and P(ALL)")
    ] == values


@pytest.mark.usefixtures("unpainted")
def test_an_evaluation_from_before_area_was_held_fixed_still_gives_pages(own: Path):
    others = (own / "ladder" / "grouped", own / "ladder" / "image")
    assert "AUROC within thirds by area" in text_of(*others)
    kept = evaluation_of(own / "run")
    del kept["within_area"]
    (own / "run" / "evaluation.json").write_text(json.dumps(kept))
    assert "more than size" not in text_of(own / "run")
    assert "within thirds by area" not in text_of(own / "run", *others)


@pytest.mark.usefixtures("unpainted")
def test_what_cannot_be_computed_is_undefined_with_its_reason(tmp_path: Path):
    table = report_folders.cells(12)
    only = table.take(np.flatnonzero(table.label == 1))
    workdir = report_folders.write_run(tmp_path / "run", table=only)
    page = Page(text_of(workdir))
    assert page.classes["value"][0] == "undefined"
    assert "no image is HEM" in page.classes["table"][0]
    for name in ("report.html", "model_card.md", "claim.md"):
        text = (workdir / name).read_text(encoding="utf-8")
        assert "undefined" in text
        assert not re.search(r"\b(nan|NaN)\b", text)
        # Settings that are not set are None.
        assert "None" not in text[: text.find('<section id="settings"')]


@pytest.mark.parametrize(
    ("file", "section", "reason"),
    [
        ("evaluation.json", "summary", "there is no evaluation.json"),
        ("config.json", "settings", "there is no config.json"),
        ("metrics.jsonl", "learning", "there is no metrics.jsonl"),
        ("baselines.json", "baselines", "allcls baselines"),
        ("ladder.json", "ladder", "vgg19:ladder"),
    ],
)
@pytest.mark.usefixtures("unpainted")
def test_a_missing_piece_is_said_to_be_missing(
    own: Path, file: str, section: str, reason: str
):
    (own / "run" / file).unlink(missing_ok=True)
    html = text_of(own / "run")
    part = html[html.index(f'<section id="{section}"') :]
    part = part[: part.index("</section>")]
    assert "Not available:" in part
    assert reason in part


@pytest.mark.usefixtures("unpainted")
def test_a_record_of_an_older_version_still_gives_a_page(own: Path):
    results = json.loads((own / "run" / "results.json").read_text())
    old = {key: results[key] for key in ("notes", "disclaimer")}
    (own / "run" / "results.json").write_text(json.dumps(old))
    for name in ("evaluation.json", "config.json", "predictions.csv", "metrics.jsonl"):
        (own / "run" / name).unlink()
    page = Page(text_of(own / "run"))
    assert len(page.classes["absent"]) > 12
    assert "synthetic cells" in page.classes["banner"][0]


def test_the_same_folder_gives_the_same_bytes(
    folders: Path, run_page: str, tmp_path: Path
):
    # The page names the folder and its parent, and nothing above.
    again = tmp_path / folders.name / "run"
    shutil.copytree(folders / "run", again)
    assert text_of(again) == run_page
    for name in ("model_card.md", "claim.md"):
        assert (again / name).read_bytes() == (folders / "run" / name).read_bytes()


def test_a_folder_that_is_no_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: holds no run")
    assert error.count("\n") == 1
    (tmp_path / "config.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert "has not finished" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", "["),
        ("results.json", "[]"),
        ("results.json", '{"kind": "sweep"}'),
        ("evaluation.json", "{"),
        (
            "evaluation.json",
            '{"settings": {}, "counts": 3, "figures": {"by_image": 1}}',
        ),
    ],
)
@pytest.mark.usefixtures("unpainted")
def test_a_damaged_file_is_named_and_nothing_is_written(
    own: Path, capsys: pytest.CaptureFixture[str], file: str, content: str
):
    (own / "run" / file).write_text(content)
    assert main([str(own / "run")]) == 2
    assert str(own / "run") in capsys.readouterr().err
    assert not (own / "run" / "report.html").exists()
    assert not (own / "run" / "model_card.md").exists()


@pytest.mark.usefixtures("unpainted")
def test_a_rung_shows_the_ladder_it_stands_in_and_another_run_does_not(own: Path):
    rung = text_of(own / "ladder" / "grouped")
    assert "The paper&#39;s claim" in rung
    assert "0.9919" in rung
    stranger = own / "ladder" / "stranger"
    shutil.copytree(own / "run", stranger)
    assert "figure-ladder" not in text_of(stranger)


@pytest.mark.usefixtures("unpainted")
def test_a_ladder_shows_its_rungs_first_and_the_honest_one_in_detail(own: Path):
    html = text_of(own / "ladder")
    assert html.index('<section id="ladder"') < html.index('<section id="summary"')
    assert "of the rung <strong>grouped</strong>" in html
    value = evaluation_of(own / "ladder" / "grouped")["figures"]["by_image"]["auroc"]
    assert Page(html).classes["value"][0] == f"{value['value']:.3f}"


@pytest.mark.usefixtures("unpainted")
def test_several_folders_are_compared_in_the_first(own: Path):
    first, second = own / "ladder" / "grouped", own / "ladder" / "image"
    path = write_report([first, second, own / "run"])
    assert path == first / "report.html"
    assert not (second / "report.html").exists()
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.headings[0] == (1, "Comparison of 3 runs")
    assert "B: leaky: patients shared" in page.classes["banner"][0]
    for name in ("roc", "side-by-side-figure", "differences"):
        assert f"figure-{name}" in page.ids
    assert "B against A" in html
    assert "C against A" in html
    images = evaluation_of(own / "run")["counts"]["images"]
    row = re.search(r"A and C</th>\s*<td>([\d,]+)</td>", html)
    assert row is not None
    assert row[1] == f"{images:,}"


@pytest.mark.usefixtures("unpainted")
def test_a_comparison_names_the_settings_that_differ(own: Path):
    settings = json.loads((own / "run" / "config.json").read_text())
    settings["optim"]["learning_rate"] = 0.007
    (own / "run" / "config.json").write_text(json.dumps(settings))
    html = text_of(own / "ladder" / "grouped", own / "run")
    part = html[html.index('<section id="settings"') :]
    assert "optim.learning_rate" in part
    assert "0.007" in part
    assert "optim.name" not in part


@pytest.mark.usefixtures("unpainted")
def test_runs_without_a_common_image_are_not_paired(own: Path):
    path = own / "run" / "predictions.csv"
    path.write_text(path.read_text().replace("image0", "other0"))
    html = text_of(own / "ladder" / "grouped", own / "run")
    part = html[html.index('<section id="paired"') :]
    part = part[: part.index("</section>")]
    assert "Not available:" in part


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("run", "run"), "given twice"),
        (("run", "ladder"), "name their folders"),
        (("run",) * 7, "at most 6"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(
    own: Path, names: tuple[str, ...], says: str
):
    with pytest.raises(InputError, match=says):
        write_report([own / name for name in names])


@pytest.mark.usefixtures("unpainted")
def test_the_worst_mistakes_are_shown_as_the_very_pictures_tested(tmp_path: Path):
    drawn = SyntheticConfig(num_images=60, num_patients=12)
    settings = report_folders.config(
        source="synthetic", dir=None, image_size=32, synthetic=drawn
    )
    cells = prepare.open_cells(
        settings.data, pack_size=32, cache_dir=tmp_path / "cache"
    )
    workdir = report_folders.write_run(
        tmp_path / "run", table=cells.table, settings=settings, skill=0.2
    )
    arguments = [str(workdir), "--cache", str(tmp_path / "cache")]
    assert main(arguments) == 0
    mistakes = evaluation_of(workdir)["mistakes"]
    html = (workdir / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(mistakes) > 0
    assert f"Cell {mistakes[0]['image_id']} of patient" in html


@pytest.mark.usefixtures("unpainted")
def test_another_picture_of_the_same_name_is_left_out(tmp_path: Path):
    drawn = SyntheticConfig(num_images=60, num_patients=12)
    settings = report_folders.config(
        source="synthetic", dir=None, image_size=32, synthetic=drawn
    )
    cells = prepare.open_cells(
        settings.data, pack_size=32, cache_dir=tmp_path / "cache"
    )
    other = dataclasses.replace(
        cells.table, sha256=np.array(["0" * 64] * len(cells.table))
    )
    workdir = report_folders.write_run(
        tmp_path / "run", table=other, settings=settings, skill=0.2
    )
    write_report([workdir], cache=tmp_path / "cache")
    html = (workdir / "report.html").read_text()
    assert "data:image/png" not in html
    assert "are not those that were tested" in html


@pytest.mark.usefixtures("unpainted")
def test_cells_that_cannot_be_opened_are_said_to_be_elsewhere(own: Path):
    html = write_report([own / "run"], data=own / "nowhere").read_text()
    part = html[html.index('<section id="mistakes"') :]
    assert "Not available:" in part
    assert "give the folder of the cells with --data" in part


@pytest.mark.usefixtures("unpainted")
def test_everything_that_is_written_carries_the_disclaimer(own: Path):
    write_report([own / "run"])
    for name in (REPORT_FILE, MODEL_CARD_FILE, CLAIM_FILE):
        assert DISCLAIMER in (own / "run" / name).read_text(encoding="utf-8")
