"""The page in a real browser: what a person does with it, and that it shows what the Python API gives."""

import base64
import csv
import io
import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_world import CHROMIUM, Running, png

from steerable.app import Service

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

# A folder for pictures of each tab, in light and dark, wide and narrow. The README's are made by
#   STEERABLE_APP_BUNDLE=runs/demo/steerable/bundle STEERABLE_SCREENSHOTS=DIR pytest tests/app/test_page.py -k screen
SHOTS = os.environ.get("STEERABLE_SCREENSHOTS")
EXTERNAL = "requests to other hosts"
WAIT = 60_000  # ms: test machines are slow, and shared


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server: Running) -> Iterator:
    """A page that is loaded; at the end nothing was asked of another host, and no script failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    problems: list[str] = []
    page.on("request", lambda r: _local(r.url) or problems.append(f"{EXTERNAL}: {r.url}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 500 else None)
    page.goto(server.url)
    settled(page)
    yield page
    assert problems == []
    context.close()


def _local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1", "data:", "blob:"))


def settled(page) -> None:
    """Both lists and all figures are there."""
    page.wait_for_selector("#encoded .hit", timeout=WAIT)
    page.wait_for_function("!document.querySelector('#tiles').innerText.includes('…')", timeout=WAIT)


def ids(page, part: str) -> list[str]:
    return page.locator(f"{part} .hit img").evaluate_all("all => all.map(img => img.dataset.id)")


def move(page, name: str, steps: int) -> None:
    """Move a slider by the keyboard, and wait until everything shows it."""
    before = page.locator("#share").get_attribute("href")
    slider = page.locator(f"#theta-{name} input[type=range]")
    slider.focus()
    for _ in range(abs(steps)):
        slider.press("ArrowRight" if steps > 0 else "ArrowLeft")
    value = float(slider.input_value())
    wanted = f"{name}={value:g}" if value else ""
    page.wait_for_function(
        "([was, text]) => { const now = document.querySelector('#share').getAttribute('href');"
        " return now !== was && now.includes(text) }",
        arg=[before, wanted],
        timeout=WAIT,
    )
    page.wait_for_timeout(350)  # the pause after which the transformed image is encoded
    settled(page)


def state(page) -> dict[str, str]:
    """What the share link holds."""
    return dict(urllib.parse.parse_qsl(page.locator("#share").get_attribute("href")[1:]))


def test_neighbors_are_those_of_the_python_api(page, service: Service):
    start = ids(page, "#steered")
    move(page, "brightness", 60)
    now = state(page)
    chosen = service.choose(now["image"])
    theta = {"brightness": float(now["brightness"])}
    assert theta["brightness"] > 0.3
    steered = service.search(chosen.e, theta, k=12)
    true = service.compare(chosen, theta, steered.e, k=12)
    assert ids(page, "#steered") == [row["id"] for row in steered.hits]
    assert ids(page, "#encoded") == [row["id"] for row in true.hits]
    assert ids(page, "#encoded") != start, "the move was large enough to change something"
    tiles = page.locator("#tiles").inner_text()
    assert f"{true.cosine:.3f}" in tiles
    assert f"{true.rank} of 50" in tiles
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("!document.querySelector('#share').href.includes('brightness')", timeout=WAIT)
    page.wait_for_timeout(350)
    settled(page)
    assert ids(page, "#steered") == start
    page.get_by_role("button", name="Reset").click()  # changes nothing, and must not leave figures out
    page.wait_for_timeout(500)
    settled(page)


def test_upload_and_what_is_refused(page, service: Service, tmp_path: Path):
    (tmp_path / "mine.png").write_bytes(png((20, 160, 60)))
    (tmp_path / "broken.png").write_bytes(png()[:70])
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    (tmp_path / "huge.png").write_bytes(png() + b"0" * service.bounds.body)
    upload = page.locator("#upload")
    upload.set_input_files(tmp_path / "mine.png")
    page.get_by_alt_text("mine.png as it is").wait_for()
    page.wait_for_timeout(350)
    settled(page)
    wanted = service.search(service.encode([png((20, 160, 60))])[0], {}, k=12)
    assert ids(page, "#steered") == [row["id"] for row in wanted.hits]
    assert "image" not in state(page)
    assert "not stored" in page.locator("#link").inner_text()
    for name, words in (
        ("broken.png", "cannot be decoded"),
        ("drawing.svg", "no known format"),
        ("huge.png", "at most"),
    ):
        upload.set_input_files(tmp_path / name)
        page.get_by_role("alert").filter(has_text=words).wait_for()
        assert page.get_by_alt_text("mine.png as it is").is_visible(), "the image before stays"
    page.locator(".samples button").nth(2).click()
    page.wait_for_selector("#message .message", state="detached")


def test_search_with_a_filter_and_pages(page, service: Service):
    move(page, "hue", 10)
    now = state(page)
    page.get_by_role("tab", name="Search").click()
    page.wait_for_selector("#results .hit")
    e, theta = service.choose(now["image"]).e, {"hue": float(now["hue"])}
    wanted = [row["id"] for row in service.search(e, theta, k=48).hits]
    assert ids(page, "#results") == wanted[:24]
    page.get_by_role("button", name="Next page").click()
    page.get_by_text("Images 25 to 48").wait_for()
    assert ids(page, "#results") == wanted[24:]
    page.get_by_role("button", name="Previous page").click()
    page.get_by_text("Images 1 to 24").wait_for()
    condition = page.get_by_label("Condition")
    condition.fill("label = 'flower' or label = 'cat'")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("that meet the condition").wait_for()
    hits = service.search(e, theta, k=24, where="label = 'flower' or label = 'cat'").hits
    assert ids(page, "#results") == [row["id"] for row in hits]
    href = page.get_by_role("link", name=re.compile("CSV")).get_attribute("href")
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(href.partition(",")[2]).decode())))
    assert [row["id"] for row in rows] == [row["id"] for row in hits]
    condition.fill("(select 1)")
    condition.press("Enter")
    page.get_by_role("alert").filter(has_text="cannot be read").wait_for()
    condition.fill("label = 'nothing of that name'")
    condition.press("Enter")
    page.get_by_text("No image meets the condition").wait_for()


def test_the_share_link_restores_the_state(page, browser, server: Running):
    page.locator(".samples button").nth(3).click()
    page.wait_for_timeout(500)
    move(page, "zoom", 40)
    page.locator("#theta-hflip input").check()
    page.wait_for_function("document.querySelector('#share').href.includes('hflip=1')", timeout=WAIT)
    page.wait_for_timeout(350)
    settled(page)
    link = page.locator("#share").get_attribute("href")
    other = browser.new_page()
    other.set_default_timeout(WAIT)
    other.goto(server.url + "/" + link)
    settled(other)
    assert state(other) == state(page)
    assert ids(other, "#encoded") == ids(page, "#encoded")
    assert other.locator("#theta-zoom input[type=range]").input_value() == state(page)["zoom"]
    other.goto(server.url + "/?image=..%2F..%2Fetc&hue=NaN&zoom=1e9&brightness=x&k=7")
    settled(other)
    assert other.get_by_role("alert").count() == 1
    assert state(other).get("hue") is None
    other.close()


def test_a_slider_beyond_its_trusted_range_is_amber(page, service: Service, monkeypatch: pytest.MonkeyPatch):
    tight = service.trust["saturation"]._replace(low=-0.1, high=0.1, still=False)
    monkeypatch.setitem(service.trust, "saturation", tight)
    color = "getComputedStyle(document.querySelector('#theta-saturation')).getPropertyValue('--slider-color')"
    amber = "getComputedStyle(document.querySelector('.gradio-container')).getPropertyValue('--amber')"
    plain = page.evaluate(color)
    move(page, "saturation", 40)
    assert page.evaluate(color) == page.evaluate(amber) != plain
    assert "saturation +0.4 stops" in page.locator(".message.amber").inner_text()
    move(page, "saturation", -35)
    assert page.evaluate(color) == plain


def test_audit_and_views(page, service: Service):
    page.get_by_role("tab", name="Audit").click()
    audit = page.locator("#audit")
    for sentence in service.reports[0].sentences("tiny"):
        assert sentence in audit.inner_text()
    assert audit.locator(".curves svg").count() == sum(not p.is_switch for p in service.model.params)
    page.get_by_role("tab", name="Compare views").click()
    page.wait_for_selector("#views .histogram")
    score = service.score(service.choose(state(page)["image"]).e)
    top = score.classes[int(score.views.mean(0).argmax())]
    assert page.locator("#views .bars li").first.inner_text().startswith(top)
    assert page.locator("#views .histogram").count() == 2


def test_everybody_can_use_it(page):
    """Alt texts, names, and the keyboard's way through."""
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("img[alt='']").count() == 0
    assert page.locator("#right svg[role=img]:not([aria-label])").count() == 0
    page.locator("#upload").focus()
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.closest('[id]')?.id || document.activeElement.textContent.trim()"
            )
        )
    assert {"picker", "theta-zoom", "theta-hue", "reset", "share"} <= {
        s.replace("range_id", "") for s in seen
    } | {
        page.evaluate(f"document.getElementById({name!r})?.closest('.theta')?.id || ''") for name in seen
    } | {"picker"}


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "dark"),
        pytest.param(1280, "light", marks=pytest.mark.slow),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_it_fits_the_screen(browser, server: Running, width: int, scheme: str):
    context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(server.url)
    settled(page)
    page.locator(".samples button[title=flower]").first.click()
    page.wait_for_timeout(700)
    settled(page)
    move(page, "hue", 12)
    dark = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).every(v => v < 90)"
    )
    assert dark == (scheme == "dark")
    for tab in ("Steer", "Search", "Audit", "Compare views"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(700)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        if SHOTS:
            page.screenshot(
                path=Path(SHOTS) / f"{tab.split()[0].lower()}-{scheme}-{width}.png", full_page=True
            )
    context.close()
