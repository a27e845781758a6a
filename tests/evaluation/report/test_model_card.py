import json
import re

import pytest

from allcls_jax import DISCLAIMER
from allcls_jax.evaluation.report import model_card
from allcls_jax.evaluation.report.record import read
from tests.evaluation import report_folders

SECTIONS = (
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
    "Notices",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory):
    return report_folders.write_run(
        tmp_path_factory.mktemp("card") / "run", notes=["leaky: patients shared"]
    )


def test_the_card_has_the_sections_of_the_paper_in_their_order(workdir):
    text = model_card.render(read(workdir))
    assert re.findall(r"^## (.+)$", text, re.M) == list(SECTIONS)
    assert text.count(DISCLAIMER) >= 3


def test_the_card_gives_the_figures_of_the_record(workdir):
    text = model_card.render(read(workdir))
    entries = json.loads((workdir / "evaluation.json").read_text())["figures"]
    for name, shown in (("auroc", "AUROC"), ("specificity", "Specificity")):
        entry = entries["by_image"][name]
        span = f"{entry['low']:.3f}–{entry['high']:.3f}"
        line = f"| {shown} | {entry['value']:.3f} | {span} |"
        assert line in text


def test_the_card_warns_first_and_names_licences_last(workdir):
    text = model_card.render(read(workdir))
    assert text.index("leaky: patients shared") < text.index("## Model details")
    notices = text[text.index("## Notices") :]
    for part in (
        "CC BY 3.0",
        "Gupta, A., &amp; Gupta, R. (2019)",
        "CC BY 4.0",
        "Oxford",
    ):
        assert part in notices


def test_synthetic_cells_and_random_weights_get_no_licence_of_others(tmp_path):
    settings = report_folders.config(source="synthetic")
    workdir = report_folders.write_run(tmp_path / "run", settings=settings)
    path = workdir / "results.json"
    results = json.loads(path.read_text())
    results["weights"] = {"source": "random", "file": None, "sha256": None}
    path.write_text(json.dumps(results))
    text = model_card.render(read(workdir))
    assert "CC BY" not in text
    assert "there are no patients behind them" in text
    assert "nobody's weights" in text


def test_the_card_invents_nothing_where_the_record_is_empty(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    text = model_card.render(read(tmp_path))
    assert text.count("not available") > 20
    assert not re.search(r"vgg|C-NMC|\d{2,} images", text)


def test_tables_keep_their_shape_whatever_is_in_them(tmp_path):
    workdir = report_folders.write_run(
        tmp_path / "run", table=report_folders.cells(12, prefix="a|b*_`\\")
    )
    text = model_card.render(read(workdir))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert widths <= {5, 6, 9}
    assert "a\\|b\\*\\_\\`\\\\" in text
