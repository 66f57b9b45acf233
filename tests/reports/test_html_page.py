"""The HTML page: one file, whole, escaped; and, where a Chromium is found, what a reader does with it."""

import base64
import dataclasses
import gzip
import importlib.util
import json
import re
import shutil

import pytest

from reports.html_page import render_comparison, render_page
from reports.setting import Ceiling

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HOSTILE = (
    "</script><script>document.title='hacked'</script>",
    "<img src=x onerror=alert(1)>",
    "a\x1b[31m|b\nc‮",
    "long" * 25_000,
    "\"'&amp;<!--",
)


@pytest.fixture
def rich_report(make_report, nodes):
    hardware = make_report().hardware
    ceilings = (
        Ceiling(name="matrix bfloat16", kind="compute", per_s=1e12),
        Ceiling(name="dram", kind="memory", per_s=1e11),
        Ceiling(name="nvlink", kind="network", per_s=1e10),
    )
    collective = dataclasses.replace(nodes[-1], axis="tp")
    return make_report(
        nodes=(*nodes[:-1], collective),
        hardware=dataclasses.replace(hardware, ceilings=ceilings),
    )


def large(make_report, nodes, rows):
    made = [
        dataclasses.replace(
            nodes[1],
            name=f"blocks.{i}x.mlp.matmul_{i}",
            module=f"blocks.{i}x.mlp",
            time_s=1e-6 * (1 + i % 977),
            flops=1000 + i,
            instances=(),
        )
        for i in range(rows)
    ]
    return make_report(nodes=made)


def data_of(page):
    packed = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_one_file_that_asks_for_nothing(rich_report):
    page = render_page(rich_report)
    assert "default-src 'none'" in page
    markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert re.findall(r"\b(?:src|href)=(\S*?)>", markup) == ['"#operators"']
    assert not re.search(r"@import|url\(", re.search(r"<style>.*?</style>", page, re.DOTALL)[0])


def test_same_report_same_bytes(rich_report):
    assert render_page(rich_report) == render_page(rich_report)


def test_ten_thousand_operators_below_two_megabytes(make_report, nodes):
    assert len(render_page(large(make_report, nodes, 10_000)).encode()) < 2_000_000


def test_the_data_add_up_to_the_totals(rich_report):
    data = data_of(render_page(rich_report))["reports"][0]
    rows, totals = data["rows"], rich_report.totals
    assert sum(rows["flops"]) == totals.flops
    assert sum(rows["read"]) == totals.bytes_read
    assert sum(rows["written"]) == totals.bytes_written
    assert sum(rows["sent"]) == totals.bytes_communicated
    assert sum(rows["time"]) == pytest.approx(sum(totals.time_s.by_phase.values()), rel=1e-6)
    assert sum(c["bytes"] for c in data["collectives"]) == totals.bytes_communicated


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_data(make_report, nodes, name):
    node = dataclasses.replace(nodes[1], name=name, module="", instances=())
    page = render_page(make_report(nodes=(node,)))
    assert len(page) < 900_000
    assert "<script>document.title" not in page
    assert "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "\x1b" not in json.dumps(data_of(page))


# --- in a browser -------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and playwright: apt-get install chromium; pip install playwright",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page from disk; fails the test on any console error or request to elsewhere."""
    wrong = []
    pages = []

    def open_page(text):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith("file:") or wrong.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector(".chart canvas")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def first_cells(page, count=3):
    rows = page.locator("#operators tr.row")
    return [rows.nth(i).locator("td").first.inner_text() for i in range(min(count, rows.count()))]


@needs_browser
def test_sort_filter_and_keyboard(opened, rich_report):
    page = opened(render_page(rich_report))
    assert first_cells(page)[0].startswith("model.layers.[0-1].mlp.matmul")
    page.get_by_role("button", name="operator").click()
    assert first_cells(page)[0] == "model.embed embed"
    assert page.locator("#operators th").first.get_attribute("aria-sort") == "ascending"
    page.get_by_role("searchbox", name="Filter").fill("all_reduce network")
    assert first_cells(page) == ["model.layers.[0-1].mlp.all_reduce"]
    page.get_by_role("searchbox", name="Filter").fill("")
    page.get_by_role("combobox", name="bound").select_option("compute")
    assert page.get_by_role("status").inner_text() == "1 of 3 rows"
    page.get_by_role("combobox", name="bound").select_option("")
    page.locator("#operators tr.row").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#operators tr.chosen").get_attribute("aria-rowindex") == "3"


@needs_browser
def test_a_point_of_the_roofline_shows_and_finds_its_operator(opened, rich_report):
    page = opened(render_page(rich_report))
    place = page.evaluate(
        """() => {
            const drawn = charts.find((c) => c.box === charts[0].box).drawn;
            const series = drawn.getOption().series;
            const seriesIndex = series.findIndex((s) => s.name === "compute" && s.type === "scatter");
            const [x, y] = drawn.convertToPixel({ seriesIndex }, series[seriesIndex].data[0].value);
            const box = charts[0].box.getBoundingClientRect();
            return [box.x + x, box.y + y];
        }"""
    )
    page.mouse.move(*place)
    page.wait_for_selector(".tip")
    assert "model.layers.[0-1].mlp.matmul" in page.locator(".tip").inner_text()
    page.mouse.click(*place)
    page.wait_for_selector("tr.chosen")
    assert page.locator("tr.chosen td").first.inner_text() == "model.layers.[0-1].mlp.matmul"


@needs_browser
def test_themes_and_print(opened, rich_report):
    page = opened(render_page(rich_report))
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Light / dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls").is_hidden()


@needs_browser
def test_hostile_names_in_the_browser(opened, make_report, nodes):
    made = [dataclasses.replace(nodes[1], name=n, module=n, instances=()) for n in HOSTILE]
    page = opened(render_page(make_report(nodes=made)))
    assert page.title() == "tiny on toy"
    assert page.locator("#page img").count() == 0
    assert page.locator("#operators tr.row").count() == len(HOSTILE)
    page.locator("#operators tr.row").first.click()


@needs_browser
def test_ten_thousand_rows_stay_few_elements(opened, make_report, nodes):
    page = opened(render_page(large(make_report, nodes, 10_000)))
    assert page.get_by_role("status").inner_text() == "10000 of 10000 rows"
    assert page.locator("#operators tr.row").count() < 80
    page.locator(".scroller").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    page.wait_for_selector('#operators tr[aria-rowindex="10001"]')


@needs_browser
def test_two_reports_side_by_side(opened, rich_report, make_report):
    changes = [
        {
            "name": "<b>mlp</b>",
            "op": "linear",
            "state": "changed",
            "bound": "compute → memory:dram",
            "before_s": 1e-3,
            "after_s": 2e-3,
            "flops": 10,
            "bytes": -5,
        }
    ]
    page = opened(render_comparison(rich_report, make_report(), ("old", "new"), changes))
    assert page.locator(".columns.two").count() >= 4
    row = page.locator("tr.row", has_text="<b>mlp</b>")
    assert "+1.00 ms" in row.inner_text()
