"""The page in a browser: in both themes, on a phone, with a mouse and with keys only, and without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from PIL import Image
from samples import HOSTILE

CLASSES = "#gate table"


def column(browser: Browser, table: str, place: int) -> list[str]:
    script = f"[...document.querySelector({table!r}).tBodies[0].rows].map(row => row.cells[{place}].textContent)"
    return browser.run(script)


def background(browser: Browser) -> str:
    return browser.run("getComputedStyle(document.body).backgroundColor")


def test_nothing_is_asked_for_and_nothing_goes_wrong(browser: Browser, full_report: Path) -> None:
    browser.open(full_report)
    assert browser.faults == []
    assert browser.run("document.title") == "tiny1.bundle"  # the names' scripts did not run
    assert browser.run("document.querySelectorAll('main img[onerror], main script, main b').length") == 0
    loaded = browser.run(
        "[...document.images].map(each => (each.loading = 'eager', each.decode()))&&document.images.length"
    )
    assert loaded == 10  # two images of five panels
    for image in range(loaded):
        assert browser.run(f"document.images[{image}].decode().then(() => document.images[{image}].naturalWidth)") == 32


def test_a_listener_would_hear_faults(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.log('x'); throw new Error('y')</script>")
    browser.open(page)
    said = " ".join(browser.faults)
    for fault in ("http://127.0.0.1:9/x.png", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
        assert fault in said


def test_a_click_sorts_and_another_turns_it_round(browser: Browser, full_report: Path) -> None:
    browser.open(full_report)
    assert column(browser, CLASSES, 1) == ["90.00", "80.00", "70.00", "60.00", ""]
    head = f"{CLASSES} thead th:nth-child(2)"
    browser.click(f"{head} button")
    assert column(browser, CLASSES, 1) == ["60.00", "70.00", "80.00", "90.00", ""]
    assert browser.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == "ascending"
    browser.click(f"{head} button")
    assert column(browser, CLASSES, 1) == ["90.00", "80.00", "70.00", "60.00", ""]  # what is empty stays last
    assert browser.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == "descending"
    assert column(browser, CLASSES, 0)[0] == HOSTILE[0]


def test_keys_alone_reach_and_sort_a_table(browser: Browser, full_report: Path) -> None:
    browser.open(full_report)
    seen = []
    for _ in range(60):
        browser.press("Tab")
        where = browser.run("[document.activeElement.tagName, document.activeElement.textContent.slice(0, 40)]")
        seen.append(where[1])
        if where == ["BUTTON", "Lost, points"]:
            break
    assert seen[0] == "Skip to the content" and seen[1] == "Dark"
    assert seen[-1] == "Lost, points"
    browser.press("Enter")
    assert column(browser, CLASSES, 3) == ["+0.10", "+0.20", "+1.50", "+6.00", ""]
    browser.press("Enter")
    assert column(browser, CLASSES, 3) == ["+6.00", "+1.50", "+0.20", "+0.10", ""]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(browser: Browser, full_report: Path, dark: bool) -> None:
    browser.open(full_report, dark=dark)
    browser.run("localStorage.clear()")
    browser.open(full_report, dark=dark)
    light_ground, dark_ground = "rgb(246, 247, 249)", "rgb(17, 21, 27)"
    assert background(browser) == (dark_ground if dark else light_ground)
    browser.click("#theme")
    assert background(browser) == (light_ground if dark else dark_ground)
    browser.open(full_report, dark=dark)
    assert background(browser) == (light_ground if dark else dark_ground)  # remembered
    browser.run("localStorage.clear()")
    assert browser.faults == []


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_no_page_is_wider_than_its_window(browser: Browser, full_report: Path, width: int) -> None:
    browser.open(full_report, width=width, height=800)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("window.scrollTo(500, 0), window.scrollX") == 0


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (360, False)])
def test_it_can_be_looked_at(browser: Browser, full_report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    browser.open(full_report, width=width, height=900, dark=dark)
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (width, 900)
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 100  # text and tiles, not a blank page
