"""The page on a monitor of 1920 × 1080: what somebody five metres away sees, in good days and bad ones.

Pictures are left in .lab/screenshots/noc-board-*.png: look at them after a change of the page.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import REPOSITORY, hours_ago
from playwright.sync_api import Page, expect

SCREENSHOTS = REPOSITORY / ".lab/screenshots"


@contextmanager
def monitor(board, language: str = "en", **options) -> Iterator[Page]:
    """The page on the monitor; a complaint of the browser or a request to elsewhere is a failure."""
    context = board.browser.new_context(viewport={"width": 1920, "height": 1080}, timezone_id="Asia/Tokyo", **options)
    page, complaints, elsewhere = context.new_page(), [], []
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(board.url) else None)
    page.clock.install()
    try:
        page.goto(f"{board.url}?lang={language}" if language else board.url)
        expect(page).to_have_title(re.compile("ready|stale|away|late|empty"))
        yield page
        assert [url for url in elsewhere if not url.startswith("data:")] == []
        assert [line for line in complaints if "status of 404" not in line and "ERR_" not in line] == []
    finally:
        context.close()


def picture(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"noc-board-{name}.png")


def fits(page: Page) -> None:
    """Nothing is cut off or lies beyond the monitor, and what is to be read from afar is large."""
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
        1920,
        1080,
    ]
    found = page.evaluate(
        """() => [...document.querySelectorAll('h1, h2, .figures b, .figures span, td:not(.name), #asof, #notice')]
            .filter((one) => one.offsetParent && one.textContent.trim())
            .map((one) => [one.textContent, parseFloat(getComputedStyle(one).fontSize),
                getComputedStyle(one).display === 'inline' ? 0 : one.scrollWidth - one.clientWidth,
                one.getBoundingClientRect().bottom - (one.closest('.card, .figures > div') ?? document.body)
                    .getBoundingClientRect().bottom,
                one.getBoundingClientRect().right])"""
    )
    inline = page.evaluate(
        """() => [...document.querySelectorAll('.figures b, .figures > div > span')].map((one) =>
            [one.textContent, one.getBoundingClientRect().right - one.parentElement.getBoundingClientRect().right])"""
    )
    assert found
    for text, size, over, below, right in found:
        assert size >= 28, (text, size)
        assert over <= 1, (text, "is cut off")
        assert below <= 1, (text, "is below its card")
        assert right <= 1920, text
    for text, beyond in inline:
        assert beyond <= 0, (text, "is wider than its place")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_board_shows_the_figures_of_the_database(board, figures, language):
    board.show(figures)
    with monitor(board, language) as page:
        page.wait_for_selector("#map canvas")
        assert page.title() == "ready"
        assert page.get_attribute("html", "lang") == language
        assert page.inner_text("#messages") == f"{figures['totals']['messages']:,}"
        assert "example.org" in page.inner_text("#domains")
        assert ("Brazil" if language == "en" else "ブラジル") in page.inner_text("#countries")
        assert float(page.eval_on_selector("#messages", "one => parseFloat(getComputedStyle(one).fontSize)")) >= 64
        assert "IP data by IPinfo (CC BY-SA 4.0)" in page.inner_text("footer")
        picture(page, f"fresh-{language}")
        fits(page)


@pytest.mark.parametrize(("language", "words"), [("en", "27 hours old"), ("ja", "27時間更新されていません")])
def test_figures_of_yesterday_turn_the_board_red(board, figures, language, words):
    board.show(figures | {"generated": hours_ago(27.2)})
    with monitor(board, language) as page:
        assert words in page.inner_text("#notice")
        assert page.eval_on_selector("body", "one => getComputedStyle(one).backgroundColor") == "rgb(94, 7, 20)"
        picture(page, f"stale-{language}")
        fits(page)


def test_board_turns_red_by_itself_while_nobody_looks(board, figures):
    board.show(figures | {"generated": hours_ago(25.9)})
    with monitor(board) as page:
        assert page.title() == "ready"
        page.clock.fast_forward(11 * 60 * 1000)
        expect(page).to_have_title("stale")
        assert not page.is_hidden("#notice")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_fresh_install_says_that_there_are_no_figures_yet(board, figures, language):
    nothing = {key: 0 if isinstance(value, int) else None for key, value in figures["totals"].items()}
    nothing |= {"messages": 0, "stopped": 0, "failed": 0, "passed_pct": None, "spf_pct": None, "dkim_pct": None}
    empty = figures | {"through": None, "totals": nothing, "domains": [], "countries": [], "networks": []}
    empty |= {"countries_other": 0, "networks_other": 0, "survey": None}
    empty["daily"] = [{"day": one["day"], "passed": 0, "stopped": 0, "failed": 0} for one in figures["daily"]]
    board.show(empty)
    with monitor(board, language) as page:
        assert ("No figures yet" if language == "en" else "まだデータがありません") in page.inner_text("#notice")
        picture(page, f"empty-{language}")
        fits(page)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_huge_numbers_and_long_names_break_nothing(board, figures, language):
    large = copy.deepcopy(figures)
    large["totals"] |= {"messages": 98_765_430, "stopped": 23_456_780, "failed": 9_876_543_210, "passed_pct": 99.9}
    large["survey"] = {"taken": 123_450, "waiting": 10, "not_taken": 0, "taken_pct": 100}
    large["daily"] = [one | {"passed": 987_654_320, "failed": 87_654_320} for one in large["daily"]]
    large["countries"] = [
        {"code": code, "messages": 987_654_320 // (place + 1) ** 6 + 20}
        for place, code in enumerate(["BA", "CD", "US", "AE", "JP", "VC", "KN", "DE", "FR"])
    ]
    large["domains"] = [{"name": name, "passed_pct": 100} for name in ["a-very-long-name.of.example.org", *"ABCDEFG"]]
    large["networks"] = [
        {"code": code, "messages": 98_765_430}
        for code in ["email_provider", "web_host", "government", "marketing", "education", "saas", "isp", "unknown"]
    ]
    board.show(large)
    with monitor(board, language) as page:
        page.wait_for_selector("#map canvas")
        picture(page, f"huge-{language}")
        fits(page)


def test_server_that_is_away_leaves_the_last_figures_and_says_so(board, figures):
    board.show(figures)
    with monitor(board) as page:
        shown = page.inner_text("#messages")
        (board.folder / "figures/stats.json").unlink()
        page.clock.fast_forward(6 * 60 * 1000)
        expect(page).to_have_title("away")
        assert page.inner_text("#messages") == shown
        assert "cannot be reached" in page.inner_text("#notice")
        picture(page, "away")
        fits(page)
        board.show(figures | {"totals": figures["totals"] | {"messages": 1230}})
        page.clock.fast_forward(6 * 60 * 1000)
        expect(page).to_have_title("ready")
        assert page.inner_text("#messages") == "1,230"


def test_half_a_file_is_no_reason_to_lose_what_was_there(board, figures):
    board.show(figures)
    with monitor(board) as page:
        shown = page.inner_text("#messages")
        (board.folder / "figures/stats.json").write_text('{"version":1,"generated":')
        page.clock.fast_forward(6 * 60 * 1000)
        expect(page).to_have_title("away")
        assert page.inner_text("#messages") == shown


def test_days_without_a_report_are_told(board, figures):
    board.show(figures | {"through": hours_ago(24 * 9)[:10]})
    with monitor(board) as page:
        assert "No report of a receiver since" in page.inner_text("#notice")


def test_languages_take_turns_without_a_reload(board, figures):
    board.show(figures)
    with monitor(board, language="") as page:
        page.evaluate("window.mark = 1")
        seen = [page.get_attribute("html", "lang")]
        for _ in range(2):
            page.clock.fast_forward(31 * 1000)
            seen.append(page.get_attribute("html", "lang"))
        assert seen == ["en", "ja", "en"]
        assert page.evaluate("window.mark") == 1


def test_nothing_moves(board, figures):
    board.show(figures)
    with monitor(board, reduced_motion="reduce") as page:
        assert page.evaluate("document.getAnimations().length") == 0
        before = page.screenshot()
        page.wait_for_timeout(300)
        assert page.screenshot() == before
