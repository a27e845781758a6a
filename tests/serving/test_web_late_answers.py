"""Answers that come late or out of order leave the page right."""

import csv
import io
import json
import re
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.serving.web_client import upload

pytest_plugins = ["tests.serving.web_page"]


def set_threshold(page: Page, value: str) -> None:
    page.get_by_label("Threshold as a number").fill(value)
    page.keyboard.press("Tab")


def hold(page: Page, path: str) -> list[Route]:
    """Keeps back what is asked of a path; to be continued by the test."""
    held: list[Route] = []
    page.route(f"**/api/v1/{path}", lambda route: held.append(route))
    return held


def wait_for(page: Page, held: list[Route], count: int) -> None:
    for _ in range(200):
        if len(held) >= count:
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"{len(held)} of {count} asked")


def thresholds(held: list[Route]) -> list[str]:
    return [
        str(json.loads(route.request.post_data or "")["threshold"]) for route in held
    ]


def test_rows_that_come_after_a_new_threshold_are_decided_at_it(
    opened: tuple[Page, list[str]], folder: Path
):
    page, said = opened
    upload(page, folder, "cell_1.png")
    held = hold(page, "predict")
    page.set_input_files("#files", [folder / "cell_2.png", folder / "cell_3.png"])
    wait_for(page, held, 1)
    for value, word in (("0.00001", "ALL"), ("0.99999", "HEM")):
        set_threshold(page, value)
        expect(page.locator("#rows .pill").first).to_have_text(word)
    for route in held:
        route.continue_()
    expect(page.locator("#rows .pill")).to_have_text(["HEM"] * 3)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download table").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["decision"] for row in rows] == ["HEM"] * 3
    assert {row["threshold"] for row in rows} == {"0.99999"}
    assert said == []


def test_the_last_threshold_holds_in_whichever_order_the_answers_come(
    opened: tuple[Page, list[str]], folder: Path
):
    page, _ = opened
    upload(page, folder, "cell_1.png")
    held = hold(page, "decide")
    set_threshold(page, "0.00001")
    wait_for(page, held, 1)
    set_threshold(page, "0.99999")
    wait_for(page, held, 2)
    assert thresholds(held) == ["0.00001", "0.99999"]
    held[1].continue_()
    expect(page.locator("#rows .pill")).to_have_text("HEM")
    held[0].continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#rows .pill")).to_have_text("HEM")
    expect(page.get_by_label("Threshold as a number")).to_have_value("1")
    # A row that comes meanwhile is decided with the others.
    set_threshold(page, "0.00001")
    wait_for(page, held, 3)
    page.set_input_files("#files", folder / "cell_2.png")
    expect(page.locator("#rows tr")).to_have_count(2)
    held[2].continue_()
    wait_for(page, held, 4)
    held[3].continue_()
    expect(page.locator("#rows .pill")).to_have_text(["ALL", "ALL"])


def test_a_heat_map_of_another_threshold_is_drawn_anew(
    opened: tuple[Page, list[str]], folder: Path
):
    page, said = opened
    upload(page, folder, "cell_1.png")
    page.evaluate(
        """() => {
          window.urls = new Set();
          const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
          URL.createObjectURL = (blob) => {
            const url = make.call(URL, blob);
            urls.add(url);
            return url;
          };
          URL.revokeObjectURL = (url) => { urls.delete(url); revoke.call(URL, url); };
        }"""
    )
    held: list[Route] = []
    page.route(re.compile("/heat_map"), lambda route: held.append(route))
    page.get_by_role("switch", name="Heat maps").click()
    wait_for(page, held, 1)
    was = page.locator("#rows .pill").inner_text()
    other = "0.00001" if was == "HEM" else "0.99999"
    set_threshold(page, other)
    expect(page.locator("#rows .pill")).not_to_have_text(was)
    held[0].continue_()
    wait_for(page, held, 2)
    assert held[1].request.url.endswith(
        f"threshold={float(other):g}".replace("1e-05", "0.00001")
    )
    expect(page.locator("#rows .map-frame img")).to_have_count(0)
    held[1].continue_()
    expect(page.locator("#rows .map-frame img")).to_have_count(1)
    # Of what was cleared nothing is drawn on.
    set_threshold(page, "0.00001" if was == "ALL" else "0.99999")
    wait_for(page, held, 3)
    page.get_by_role("button", name="Clear").click()
    held[2].fulfill(body=b"a picture", content_type="image/png")
    page.wait_for_timeout(200)
    assert len(held) == 3
    assert page.evaluate("urls.size") == 0, "none is kept of what nobody sees"
    assert said == []


def test_the_focus_stays_when_more_rows_come(
    opened: tuple[Page, list[str]], folder: Path
):
    page, _ = opened
    upload(page, folder, "cell_2.png", "cell_4.png")
    page.get_by_label("Sort by").select_option("image:ascending")
    button = page.get_by_role("button", name="Look at cell_4.png closely")
    button.focus()
    page.set_input_files("#files", [folder / "cell_1.png", folder / "cell_3.png"])
    expect(page.locator("#rows tr")).to_have_count(4)
    expect(page.locator("#progress")).to_be_hidden()
    expect(button).to_be_focused()
    held = hold(page, "predict")
    page.set_input_files("#files", folder / "two.zip")
    wait_for(page, held, 1)
    button.press("Enter")
    held[0].continue_()
    expect(page.locator("#rows tr")).to_have_count(6)
    page.keyboard.press("Escape")
    expect(button).to_be_focused()


def test_what_waits_to_be_sent_again_is_stopped_too(
    opened: tuple[Page, list[str]], folder: Path
):
    page, _ = opened
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "0.5"}, body="{}")

    page.route("**/api/v1/predict", refuse)
    page.set_input_files("#files", folder / "cell_1.png")
    page.wait_for_function("document.querySelector('#bar').value === 0")
    while not asked:
        page.wait_for_timeout(20)
    page.wait_for_timeout(100)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#progress")).to_be_hidden()
    count = len(asked)
    page.wait_for_timeout(900)
    assert len(asked) == count
    expect(page.locator("#rows tr")).to_have_count(0)
