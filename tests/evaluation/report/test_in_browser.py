"""The page in a real headless browser, as a reader opens it: from the disk, offline."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route

from allcls_jax import DISCLAIMER
from allcls_jax.evaluation.report.write import write_report
from tests.browser import CONTRAST
from tests.evaluation import report_folders

PAGES = ("run", "cross_validation", "comparison")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    table = report_folders.cells(24, prefix="W" * 40)
    run = report_folders.write_run(
        root / "run", table=table, notes=["synthetic cells", "random backbone weights"]
    )
    whole = report_folders.write_cross_validation(
        root / ("long" * 30), table=table, seeds=(0,)
    )
    report_folders.write_baselines(whole)
    other = report_folders.write_run(root / "other", table=table, skill=0.8)
    return {
        "run": write_report([run]),
        "cross_validation": write_report([whole]),
        "comparison": write_report([other, run, whole]),
    }


@pytest.fixture
def opened(
    browser: Browser, pages: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what its console said or it has tried to fetch."""
    name, width = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 800}, offline=True, reduced_motion="reduce"
    )
    page = context.new_page()
    said: list[str] = []

    def refuse(route: Route) -> None:
        if route.request.url == pages[name].as_uri():
            route.continue_()
        else:
            said.append(f"fetched {route.request.url[:80]}")
            route.abort()

    page.route("**/*", refuse)
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("requestfailed", lambda asked: said.append(f"failed {asked.url[:80]}"))
    page.goto(pages[name].as_uri())
    page.wait_for_load_state("networkidle")
    yield page, said
    context.close()


everywhere = pytest.mark.parametrize(
    "opened",
    [(name, width) for name in PAGES for width in (360, 1280)],
    indirect=True,
    ids=lambda given: f"{given[0]}-{given[1]}",
)


@everywhere
def test_the_page_opens_without_a_word_and_fits_its_window(
    opened: tuple[Page, list[str]],
):
    page, said = opened
    assert said == []
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.eval_on_selector_all(
        "figure svg",
        "all => all.map(e => [e.closest('figure').id, e.getBoundingClientRect()])"
        ".map(([id, box]) => [id, box.left, box.right, box.width, box.height])",
    )
    assert len(sizes) >= 5
    for name, left, right, wide, high in sizes:
        assert wide > 200, name
        assert high > 90, name
        assert left >= 0, name
        assert right <= width, name
    # Wide tables scroll in a box of their own.
    assert page.eval_on_selector_all(
        "table", "all => all.every(e => e.closest('.scroll') !== null)"
    )


@everywhere
def test_text_can_be_read(opened: tuple[Page, list[str]]):
    page, _ = opened
    smallest = page.eval_on_selector_all(
        "p, td, th, dd, dt, li, figcaption, caption, a, summary",
        "all => Math.min(...all.map(e => parseFloat(getComputedStyle(e).fontSize)))",
    )
    assert smallest >= 12.5
    # What is drawn is scaled with its picture.
    drawn = page.eval_on_selector_all(
        "figure svg",
        "all => Math.min(...all.flatMap(svg => {"
        "  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;"
        "  return [...svg.querySelectorAll('text')].map("
        "    e => scale * parseFloat(getComputedStyle(e).fontSize));"
        "}))",
    )
    assert drawn >= 7


@pytest.mark.parametrize("opened", [("cross_validation", 1280)], indirect=True)
def test_no_label_of_a_figure_is_cut_off(opened: tuple[Page, list[str]]):
    page, _ = opened
    outside = page.eval_on_selector_all(
        "figure svg",
        "all => all.flatMap(svg => { const box = svg.getBoundingClientRect();"
        "  return [...svg.querySelectorAll('text')].filter(e => {"
        "    const own = e.getBoundingClientRect();"
        "    return own.left < box.left - 1 || own.right > box.right + 1"
        "      || own.top < box.top - 1 || own.bottom > box.bottom + 1;"
        "  }).map(e => e.textContent); })",
    )
    assert outside == []


@pytest.mark.parametrize("opened", [("cross_validation", 1280)], indirect=True)
def test_dark_text_stands_on_light(opened: tuple[Page, list[str]]):
    page, _ = opened
    low = page.evaluate(
        """() => {"""
        + CONTRAST
        + """
          return [...document.querySelectorAll('p, td, th, dd, dt, li, a, h1, h2, h3, '
            + 'figcaption, caption, summary')].filter(e => e.textContent.trim()).map(
              e => [(back(e) + 0.05) / (light(getComputedStyle(e).color) + 0.05),
                    e.textContent.trim().slice(0, 40)]).filter(([c]) => c < 4.5);
        }"""
    )
    assert low == []


@pytest.mark.parametrize("opened", [("run", 1280)], indirect=True)
def test_every_printed_page_carries_the_disclaimer(opened: tuple[Page, list[str]]):
    page, _ = opened
    page.emulate_media(media="print")
    assert page.locator(".running").is_visible()
    assert page.locator(".running").inner_text() == DISCLAIMER
    # A table's foot is what browsers repeat on each page.
    style = "e => [getComputedStyle(e).display, getComputedStyle(e).breakInside]"
    assert page.locator(".running").evaluate(style) == ["table-footer-group", "avoid"]
    assert not page.locator("nav").is_visible()


@pytest.mark.parametrize("opened", [("run", 360)], indirect=True)
def test_links_of_the_contents_lead_to_their_sections(opened: tuple[Page, list[str]]):
    page, said = opened
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert target is not None
        link.evaluate("e => e.click()")
        box = page.locator(target).bounding_box()
        assert box is not None
        assert box["height"] > 40
        assert -1 <= box["y"] < 800
    assert said == []
