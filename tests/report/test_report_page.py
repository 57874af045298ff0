"""The page in a browser: opened from a file, it draws everything and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_train.report.__main__ import main
from tests.headless_browser import Browser, require_browser
from tests.report.made_runs import NASTY, everything, make_full_run, make_run, start

# Middle of a chart's drawing, and its width and height.
BOX = (
    "(() => {{const b = document.querySelector('[data-chart={}] svg').getBoundingClientRect();"
    "return [b.x, b.y, b.width, b.height]}})()"
)
READOUT = "document.querySelector('[data-chart=loss] .readout').textContent"
TICKS = "[...document.querySelectorAll('[data-chart=loss] svg .tick')].map(t => t.textContent)"
RESET = "document.querySelector('[data-chart=loss] .tools button').hidden"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of the module."""
    require_browser()
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that has everything."""
    folder = make_full_run(tmp_path_factory.mktemp("runs") / "full")
    assert main([str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The browser with the page, which has met nothing yet."""
    browser.faults.clear()
    browser.requests.clear()
    browser.open(page)
    return browser


def test_it_opens_from_a_file_without_errors_and_asks_for_nothing_else(opened: Browser, page: Path):
    assert opened.value("document.title").startswith("full: RWKV-6, 4 layers")
    assert opened.faults == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]


def test_every_chart_has_curves_and_a_table_with_heads_that_say_their_scope(opened: Browser):
    charts = opened.value(
        "[...document.querySelectorAll('.chart')].map(c => [c.dataset.chart,"
        "[...c.querySelectorAll('svg[role] .curve')].every(p => p.getAttribute('d').length > 9),"
        "c.querySelectorAll('table thead th[scope=col]').length,"
        "c.querySelectorAll('table tbody th[scope=row]').length])"
    )
    names = {name for name, *_ in charts}
    wanted = ("loss", "bits", "sources", "positions", "rate", "gradient", "gradients", "speed")
    assert {*wanted, "mfu", "memory", "shares", "loop", "task0"} <= names
    assert all(drawn and columns >= 2 and rows >= 2 for _, drawn, columns, rows in charts), charts


def test_dragging_zooms_and_a_double_click_shows_all_again(opened: Browser):
    x, y, width, height = opened.value(BOX.format("loss"))
    before = opened.value(TICKS)
    opened.mouse("mousePressed", x + width * 0.3, y + height / 2)
    opened.mouse("mouseMoved", x + width * 0.4, y + height / 2)
    opened.mouse("mouseReleased", x + width * 0.5, y + height / 2)
    zoomed = opened.value(TICKS)
    assert zoomed != before and "0" not in zoomed and not opened.value(RESET)
    for clicks in (1, 2):
        opened.mouse("mousePressed", x + width / 2, y + height / 2, clicks)
        opened.mouse("mouseReleased", x + width / 2, y + height / 2, clicks)
    assert opened.value(TICKS) == before and opened.value(RESET)


def test_pointing_and_keys_read_the_curves_off(opened: Browser):
    x, y, width, height = opened.value(BOX.format("loss"))
    opened.mouse("mouseMoved", x + width / 2, y + height / 2, 0)
    assert "training 1." in opened.value(READOUT)
    opened.value("document.querySelector('[data-chart=loss] svg').focus()")
    opened.press("Home")
    assert opened.value(READOUT).startswith("step 1 (tokens 2,048) · training 5.5")
    opened.press("ArrowRight")
    assert opened.value(READOUT).startswith("step 2 ")
    before = opened.value(TICKS)
    opened.press("+")
    assert opened.value(TICKS) != before
    opened.press("0")
    assert opened.value(TICKS) == before


def test_the_legend_hides_a_curve_and_the_axis_changes_for_all(opened: Browser):
    curves = "document.querySelectorAll('[data-chart=loss] > svg path.curve').length"
    before = opened.value(curves)
    opened.value("document.querySelector('[data-chart=loss] .legend button').click()")
    assert opened.value(curves) == before - 2
    opened.value(
        "(() => {const s = document.querySelector('.toolbar select'); s.value = 'tokens';"
        "s.dispatchEvent(new Event('change'))})()"
    )
    assert "800 k" in opened.value(TICKS)
    assert opened.faults == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_telephone_and_follows_the_systems_colours(
    opened: Browser, page: Path, theme: str
):
    opened.open(page, width=400, height=800, theme=theme)
    assert opened.value("document.documentElement.scrollWidth") <= 400
    back = opened.value("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[theme]
    assert opened.faults == []


def test_what_a_model_has_written_is_text_and_nothing_else(browser: Browser, tmp_path: Path):
    sample = {"step": 1, "samples": [{"prompt": NASTY, "text": NASTY}]}
    folder = make_run(tmp_path / "run", [*everything(3), sample], [start(changes=[NASTY])])
    assert main([str(folder)]) == 0
    browser.faults.clear()
    browser.open(folder / "report.html")
    shown = browser.value("document.querySelector('blockquote .prompt').textContent")
    # A half of a pair is no character of a page.
    assert shown == NASTY.replace("\ud800", "\ufffd") or shown == NASTY
    assert browser.value("document.images.length") == 0 and browser.faults == []


def test_several_runs_stand_in_one_chart_with_what_differs(browser: Browser, tmp_path: Path):
    one, two = make_full_run(tmp_path / "one"), make_full_run(tmp_path / "two")
    text = (two / "config.yaml").read_text()
    (two / "config.yaml").write_text(text.replace("lr_init: 0.003", "lr_init: 0.001"))
    assert main([str(one), str(two), "--output", str(tmp_path / "both.html")]) == 0
    browser.faults.clear()
    browser.open(tmp_path / "both.html")
    legend = (
        "[...document.querySelectorAll('[data-chart=loss] .legend button')].map(b => b.textContent)"
    )
    assert browser.value(legend) == ["one", "two"]
    cells = "[...document.querySelectorAll('#differences tbody tr')].map(r => r.innerText)"
    assert browser.value(cells) == ["lr_init\t0.003\t0.001"]
    assert browser.faults == []
