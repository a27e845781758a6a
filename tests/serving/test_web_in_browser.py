"""The page in a real headless browser, used as people use it."""

import csv
import io
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from allcls_jax import DISCLAIMER
from allcls_jax.serving.model import Model
from tests.browser import CONTRAST
from tests.serving.web_client import upload

pytest_plugins = ["tests.serving.web_page"]


def names(page: Page) -> list[str]:
    return page.eval_on_selector_all(
        "#rows .name", "all => all.map(e => e.lastChild.textContent)"
    )


def probabilities(page: Page) -> list[float]:
    texts = page.locator("#rows .c-p .value").all_inner_texts()
    return [float(text.strip("<> %")) for text in texts]


def test_the_page_tells_what_to_do_and_what_it_is_not(opened: tuple[Page, list[str]]):
    page, said = opened
    expect(
        page.get_by_role("heading", name="Drop pictures of cells here")
    ).to_be_visible()
    expect(page.locator("#results")).to_be_hidden()
    page.mouse.wheel(0, 5000)
    strip = page.locator("body > .strip")
    expect(strip).to_be_in_viewport()
    expect(strip).to_contain_text(DISCLAIMER)
    expect(strip).to_contain_text("synthetic cells")
    assert said == []


def test_pictures_and_zips_become_rows_and_broken_ones_say_why(
    opened: tuple[Page, list[str]], folder: Path, tiny_model: Model
):
    page, said = opened
    photo = "<b>photo<img src=x>.png"
    sent = ("cell_1.png", "words.bmp", "large.bmp", photo, "two.zip", "many.zip")
    upload(page, folder, *sent)
    assert names(page) == [*sent[:4], "cell_5.png", "cell_6.png", "many.zip"]
    lines = page.locator("#rows tr").all_inner_texts()
    assert "Not a picture in one of the formats" in lines[1]
    assert "larger than 1.9 MiB" in lines[2]
    assert "background is not black" in lines[3]
    assert "two.zip!slide/" in lines[4]
    assert "21 pictures, and at most 20" in lines[6]
    expect(page.locator("#alert")).to_contain_text("two.zip!readme.txt")
    cell = tiny_model.read((folder / "cell_1.png").read_bytes(), name="x")
    expected = 100 * tiny_model.probabilities(cell.image[None])[0]
    assert probabilities(page)[0] == pytest.approx(expected, abs=0.051)
    values = page.locator("#headline .value").all_inner_texts()
    assert values[0] == "7"
    assert values[-1] == "3", "not read"
    shown = "all => all.every(e => e.complete && e.naturalWidth === 32)"
    page.wait_for_function(f"({shown})([...document.querySelectorAll('#rows img')])")
    # The browser's own word for an answer of 413 is all that may be said.
    assert [word for word in said if "413" not in word] == []


def test_rows_are_sorted_and_filtered(opened: tuple[Page, list[str]], folder: Path):
    page, said = opened
    upload(page, folder, "words.bmp", "cell_2.png", "cell_1.png", "two.zip")
    assert names(page)[:3] == ["words.bmp", "cell_2.png", "cell_1.png"]
    page.get_by_role("button", name="P(ALL)").click()
    falling = probabilities(page)
    assert falling == sorted(falling, reverse=True)
    assert names(page)[-1] == "words.bmp", "what was not read comes last"
    heading = page.locator("th[data-key=probability]")
    expect(heading).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="P(ALL)").click()
    assert probabilities(page) == falling[::-1]
    assert names(page)[-1] == "words.bmp"
    expect(heading).to_have_attribute("aria-sort", "ascending")
    page.get_by_label("Sort by").select_option("image:ascending")
    assert names(page)[:2] == ["cell_1.png", "cell_2.png"]

    page.get_by_label("Show", exact=True).select_option("error")
    assert names(page) == ["words.bmp"]
    page.get_by_label("Show", exact=True).select_option("all")
    page.get_by_label("Name contains").fill("SLIDE")
    assert names(page) == ["cell_5.png", "cell_6.png"]
    page.get_by_label("Name contains").fill("nothing like it")
    expect(page.locator("#nothing")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    assert len(names(page)) == 5
    assert said == []


def test_the_threshold_decides_anew(opened: tuple[Page, list[str]], folder: Path):
    page, said = opened
    upload(page, folder, *(f"cell_{at}.png" for at in (1, 2, 3, 4)))
    values = probabilities(page)
    middle = (min(values) + max(values)) / 200
    page.get_by_label("Threshold as a number").fill(f"{middle:.4f}")
    page.keyboard.press("Tab")
    expected = ["ALL" if value > 100 * middle else "HEM" for value in values]
    assert set(expected) == {"ALL", "HEM"}
    pills = page.locator("#rows .pill")
    expect(pills).to_have_text(expected)
    expect(page.get_by_label("Called ALL above")).to_have_value("number")
    page.get_by_label("Called ALL above").select_option("sensitivity_0.95")
    expect(pills).not_to_have_text(expected)
    assert said == []
    page.get_by_label("Threshold as a number").fill("7")
    page.keyboard.press("Tab")
    expect(page.locator("#threshold-error")).to_contain_text("between 0 and 1")
    assert len(said) == 1, "the browser's word for an answer of 422"
    assert "422" in said[0]


def test_heat_maps_are_shown_and_hidden(opened: tuple[Page, list[str]], folder: Path):
    page, said = opened
    upload(page, folder, "cell_1.png", "words.bmp", "cell_2.png")
    switch = page.get_by_role("switch", name="Heat maps")
    switch.click()
    expect(switch).to_have_attribute("aria-checked", "true")
    maps = page.locator("#rows .map-frame img")
    expect(maps).to_have_count(2, timeout=20_000)
    expect(maps.first).to_have_attribute("alt", "Heat map of cell_1.png")
    assert maps.first.evaluate("e => e.decode().then(() => e.naturalWidth)") == 32
    switch.click()
    expect(page.locator("#rows .map-frame:visible")).to_have_count(0)
    assert said == []


def test_the_table_is_downloaded_as_it_is_shown(
    opened: tuple[Page, list[str]], folder: Path, tiny_model: Model
):
    page, said = opened
    upload(page, folder, "cell_1.png", "words.bmp", "cell_2.png")
    page.get_by_label("Sort by").select_option("image:descending")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download table").click()
    assert download.value.suggested_filename == "allcls_predictions.csv"
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["image"] for row in rows] == ["words.bmp", "cell_2.png", "cell_1.png"]
    cell = tiny_model.read((folder / "cell_2.png").read_bytes(), name="x")
    expected = tiny_model.probabilities(cell.image[None])[0]
    assert float(rows[1]["probability"]) == pytest.approx(expected, abs=1e-6)
    assert "not a picture" in rows[0]["error"]
    for row in rows:
        assert row["disclaimer"] == DISCLAIMER
        assert "synthetic cells" in row["notes"]
        assert row["model_sha256"] == tiny_model.sha256
    assert said == []


def test_all_can_be_done_with_the_keyboard(
    opened: tuple[Page, list[str]], folder: Path
):
    page, said = opened
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([folder / "cell_1.png", folder / "cell_2.png"])
    page.wait_for_selector("#rows tr >> nth=1")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "thumb":
            break
    # What has the focus is seen to have it.
    assert (
        page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        == "solid"
    )
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="cell_1.png")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text(DISCLAIMER)
    expect(dialog.get_by_alt_text("Heat map of cell_1.png")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="cell_2.png")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(
        page.get_by_role("button", name="Look at cell_2.png closely")
    ).to_be_focused()
    assert said == []


def test_what_is_done_is_told_to_who_cannot_see_it(
    opened: tuple[Page, list[str]], folder: Path
):
    page, _ = opened
    upload(page, folder, "cell_1.png", "words.bmp")
    status = page.get_by_role("status")
    expect(status).to_have_attribute("aria-live", "polite")
    expect(status).to_contain_text("2 pictures: ")
    expect(status).to_contain_text("1 not read")
    assert page.get_by_role("row").count() == 3
    assert page.get_by_role("columnheader").count() == 6
    # Everything that can be used has a name.
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select')].filter(e =>
          e.checkVisibility() && !(e.innerText?.trim() || e.labels?.length
            || e.ariaLabel || e.getAttribute('aria-labelledby'))
          ).map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_synthetic_cells_can_be_tried_and_all_is_cleared(
    opened: tuple[Page, list[str]], url: str
):
    page, said = opened
    page.get_by_role("button", name="Try synthetic cells").click()
    expect(page.locator("#rows tr")).to_have_count(8, timeout=20_000)
    picture = page.locator("#rows img").first.get_attribute("src")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#results")).to_be_hidden()
    expect(page.locator("#choose")).to_be_focused()
    assert said == []
    page.wait_for_function(
        "path => fetch(path).then(a => a.status === 404)", arg=picture
    )


@pytest.mark.parametrize(
    "opened", [(390, "light"), (390, "dark"), (1280, "dark")], indirect=True, ids=str
)
def test_it_fits_and_can_be_read(opened: tuple[Page, list[str]], folder: Path):
    page, _ = opened
    upload(
        page, folder, "cell_1.png", "words.bmp", "<b>photo<img src=x>.png", "two.zip"
    )
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.locator("body > .strip")).to_be_in_viewport()
    low = page.evaluate(
        """() => {"""
        + CONTRAST
        + """
          const own = e => [...e.childNodes].some(
            n => n.nodeType === 3 && n.textContent.trim());
          return [...document.body.querySelectorAll('*')].filter(
            e => own(e) && e.checkVisibility() && !e.disabled
              && e.tagName !== 'OPTION').map(e => {
              const [a, b] = [back(e), light(getComputedStyle(e).color)];
              return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
                      e.textContent.trim().slice(0, 40)];
            }).filter(([contrast]) => contrast < 4.5);
        }"""
    )
    assert low == []


def test_the_description_of_the_interface_needs_nobody_else(
    opened: tuple[Page, list[str]], url: str
):
    page, said = opened
    page.goto(f"{url}docs")
    expect(page.get_by_text("/api/v1/predict", exact=True)).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.mouse.wheel(0, 5000)
    strip = page.locator(".strip")
    expect(strip).to_be_in_viewport()
    expect(strip).to_contain_text(DISCLAIMER)
    expect(strip).to_contain_text("synthetic cells")
    assert said == []


@pytest.mark.parametrize(
    "opened", [(1280, "light", 600), (640, "light", 360)], indirect=True, ids=str
)
def test_a_close_look_says_what_it_is_not(opened: tuple[Page, list[str]], folder: Path):
    page, _ = opened
    upload(page, folder, "cell_1.png")
    page.locator("#rows button.thumb").click()
    strip = page.locator("dialog .strip p")
    page.locator("#viewer").evaluate("e => e.scrollTo(0, 0)")
    expect(strip).to_be_in_viewport(ratio=1)
    expect(strip).to_contain_text(DISCLAIMER)
    expect(strip).to_contain_text("synthetic cells")
    page.locator("#viewer").evaluate("e => e.scrollTo(0, 9999)")
    expect(strip).to_be_in_viewport(ratio=1)
