"""The explorer, page by page without a browser (``opened``), and as a whole in headless Chromium (``tab``)."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).parents[3]
SCREENSHOTS = ROOT / "build" / "screenshots"
SECONDS = 120  # the machine may be busy
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
_IDLE = """() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector('[class*=st-key-running]') && !document.querySelector('[data-testid=stSpinner]')
    && !document.querySelector('[data-testid=stSkeleton]')
    && !document.querySelector('[data-stale=true]')
    && !!document.querySelector('[data-testid=stSidebarNavLink]')"""
_PLACE = """(plot, [row, column]) => {
    const axes = plot._fullLayout, box = plot.getBoundingClientRect();
    return [box.x + axes.xaxis._offset + axes.xaxis.l2p(column), box.y + axes.yaxis._offset + axes.yaxis.l2p(row)];
}"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Chromium is marked so: it takes minutes, and runs by itself (make test-browser)."""
    for item in items:
        if {"tab", "pictures"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("browser")


def _draw(name: str) -> None:
    from apps.explorer.app import page

    page(name)()


@pytest.fixture
def settle() -> Callable[[AppTest], AppTest]:
    """``settle(at.run())``: the page after its jobs are done."""
    return settled


@pytest.fixture
def words() -> Callable[[AppTest], str]:
    """``words(at)``: all that the page says."""
    return texts


@pytest.fixture
def opened(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """``opened("patch", patch_task="ioi")``: that page on the tiny model and an empty store, with these things in the address."""
    monkeypatch.setenv("MECHLAB_UI_MODEL", str(tiny_folder))
    monkeypatch.setenv("MECHLAB_UI_STORE", str(tmp_path / "runs"))

    def open_page(name: str, **address: str) -> AppTest:
        at = AppTest.from_function(_draw, args=(name,), default_timeout=SECONDS)
        for key, value in address.items():
            at.query_params[key] = value
        return settled(at.run())

    return open_page


def settled(at: AppTest) -> AppTest:
    """The page after its jobs in the background are done. Fails for an exception that the page let out."""
    seen: set[int] | None = None
    while (jobs := _jobs(at)) and {id(job) for job in jobs} != seen:
        for job in jobs:
            job.thread.join()
        seen = {id(job) for job in jobs}
        at.run()  # the page may have been drawn before the last of them was done
    assert not at.exception, at.exception[0].stack_trace
    return at


def _jobs(at: AppTest) -> list[Any]:
    return list(at.session_state["_jobs"].values()) if "_jobs" in at.session_state else []


def texts(at: AppTest) -> str:
    """All that the page says in words, one thing per line."""
    found = [*at.markdown, *at.caption, *at.info, *at.warning, *at.error, *at.success, *at.metric, *at.code]
    return "\n".join(str(getattr(one, "label", "")) + " " + str(one.value) for one in found)


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an explorer with the default model and a store that holds the run 'first'."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["ui", "--no-open", "--port", str(port), "--store", str(store)]
    log = tmp_path_factory.mktemp("explorer") / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from apps.cli.main import main; raise SystemExit(main())", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(SECONDS * 5):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"No answer from {address}: {log.read_text()}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium. Where there is none, the test is skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("No Chromium is installed: the explorer is not tested in a browser here.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, headless=True, args=_FLAGS)
        yield chromium
        chromium.close()


class Tab:
    """One browser tab on the explorer. ``page`` is Playwright's.

    Attributes:
        foreign: addresses beyond this machine that the page asked for; the fixture fails if there are any.
    """

    def __init__(self, page: Any, server: str) -> None:
        self.page, self.server = page, server
        self.foreign: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith((self.server, self.server.replace("http", "ws"), "data:", "blob:")):
            self.foreign.append(url)

    def open(self, path: str, **address: str) -> "Tab":
        """``open("patch", patch_task="ioi")``: opens the page and waits until nothing is running."""
        at = "" if path == "prompt" else path  # the first page has the bare address
        self.page.goto(f"{self.server}/{at}" + (f"?{urlencode(address)}" if address else ""))
        return self.settle()

    def settle(self) -> "Tab":
        """Waits until no script, job or spinner is running, and stays so."""
        for _ in range(2):
            self.page.wait_for_timeout(250)
            self.page.wait_for_function(_IDLE)
        assert self.page.locator("[data-testid=stException]").count() == 0, "the page shows a traceback"
        return self

    def keyed(self, key: str) -> Any:
        """The element with that Streamlit key."""
        return self.page.locator(f".st-key-{key}")

    def metric(self, label: str, place: int = 0) -> str:
        """What the page shows under exactly this label."""
        named = self.page.locator("[data-testid=stMetricLabel]").get_by_text(label, exact=True)
        metric = self.page.locator("[data-testid=stMetric]").filter(has=named)
        return metric.nth(place).locator("[data-testid=stMetricValue]").inner_text()

    def click_cell(self, key: str, row: int, column: int) -> None:
        """Clicks a cell of the heat map with that key; rows and columns count from 0 as in its table."""
        plot = self.keyed(key).locator(".js-plotly-plot")
        plot.locator(".nsewdrag").first.wait_for()
        plot.scroll_into_view_if_needed()
        x, y = plot.evaluate(_PLACE, [row, column])
        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(100)
        self.page.mouse.click(x, y)
        self.settle()

    def text(self) -> str:
        """All the text of the page, the side bar left out."""
        return self.page.locator("[data-testid=stMain]").inner_text()


@pytest.fixture
def tab(browser: Any, server: str) -> Iterator[Tab]:
    """A fresh tab, 1280 wide."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    one = Tab(context.new_page(), server)
    yield one
    context.close()
    assert one.foreign == [], "the explorer asks for things beyond this machine"


@pytest.fixture
def pictures(browser: Any, server: str) -> Callable[..., list[Path]]:
    """``pictures("patch", patch_task="ioi")``: the page in light and dark, 1280 and 1920 wide, kept in build/screenshots.

    ``press`` names a button that is pressed first.
    """

    def taken(
        path: str, *, height: int = 2600, name: str | None = None, press: str | None = None, **address: str
    ) -> list[Path]:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        files: list[Path] = []
        context = browser.new_context(viewport={"width": 1280, "height": height})
        one = Tab(context.new_page(), server).open(path, **address)
        if press is not None:
            one.page.locator("[data-testid=stButton]").get_by_role("button", name=press).first.click()
            one.settle()
        for scheme in ("light", "dark"):
            one.page.emulate_media(color_scheme=scheme)
            one.page.wait_for_timeout(500)  # until the page knows
            one.page.keyboard.press("r")  # figures are drawn in the theme that the browser has at that time
            for width in (1280, 1920):
                one.page.set_viewport_size({"width": width, "height": height})
                one.settle()
                main = one.page.locator("[data-testid=stMain]")
                assert main.evaluate("main => main.scrollWidth <= main.clientWidth"), f"{path} is wider than {width}"
                assert main.get_by_text("This is a fault in mechlab").count() == 0, main.inner_text()
                files.append(SCREENSHOTS / f"{name or path}-{scheme}-{width}.png")
                one.page.screenshot(path=files[-1])
        context.close()
        return files

    return taken
