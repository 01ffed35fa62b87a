"""How long one waits for the explorer, in headless Chromium: seconds until the page is whole, medians.

    python -m benchmarks.explorer [--rounds 5]

Every round opens a fresh tab on a running server with the default model loaded, and a store that holds one run of the demo. Limits: a
stored run 2 s, a page about the model 5 s, a head x position map of the demo prompt 3 s. Writes benchmarks/results/explorer.md.
"""

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

RESULTS = Path(__file__).parent / "results" / "explorer.md"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
WHOLE = """() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector('[class*=st-key-running]') && !document.querySelector('[data-testid=stSkeleton]')
    && !document.querySelector('[data-stale=true]') && !!document.querySelector('[data-testid=stSidebarNavLink]')
    && [...document.querySelectorAll('.stPlotlyChart')].every(one => one.querySelector('.main-svg'))"""
"""No script, job or placeholder is left, and every figure is drawn."""

Action = Callable[[Any, str], None]


def stored_run(page: Any, server: str) -> None:
    page.goto(f"{server}/runs?runs_run=demo")
    page.get_by_text("Which heads do indirect-object identification?").first.wait_for()
    page.get_by_text("not supported").first.wait_for()


def model_page(page: Any, server: str) -> None:
    page.goto(server)
    page.get_by_text("Likeliest").first.wait_for()


def next_token(page: Any, server: str) -> None:  # noqa: ARG001
    page.get_by_role("radio", name="·Mary").first.click()
    page.get_by_text("After token 1, “·Mary”").first.wait_for()


def patch_page(page: Any, server: str) -> None:
    page.goto(f"{server}/patch")
    page.get_by_text("Share restored").first.wait_for()


def head_positions(page: Any, server: str) -> None:  # noqa: ARG001
    page.get_by_role("radio", name="head × position").click()
    page.locator(".st-key-patch_layer").wait_for()


STEPS: tuple[tuple[str, Action, float | None], ...] = (
    ("a stored run is opened: title, summary and verdicts can be read", stored_run, 2.0),
    ("it is opened again, until its table and figure are drawn", stored_run, None),
    ("the page Prompt is opened", model_page, 5.0),
    ("a token is clicked there", next_token, None),
    ("the page Patch is opened (all heads of the demo prompt are patched)", patch_page, 5.0),
    ("its head x position map (every head of a layer at every token)", head_positions, 3.0),
)


@contextmanager
def serving(store: Path) -> Iterator[str]:
    """The address of an explorer over that store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", "from apps.cli.main import main; raise SystemExit(main())", "ui", "--no-open"]
    options = ["--port", server.rpartition(":")[2], "--store", str(store)]
    process = subprocess.Popen([*command, *options], env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ})
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{server}/_stcore/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def timed(page: Any, server: str, action: Action, *, whole: bool = True) -> float:
    """Seconds until the page is whole, or until what the action waits for is there; then the page becomes whole."""
    started = time.perf_counter()
    action(page, server)
    there = time.perf_counter() - started
    page.wait_for_function(WHOLE, polling=20)
    return time.perf_counter() - started if whole else there


def measure(store: Path, rounds: int) -> tuple[float, dict[str, list[float]]]:
    """Seconds from the server's start to the first page about the model; step -> seconds per round."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("No Chromium is installed: the explorer is timed in one. Install it, or put it into the path.")
    found: dict[str, list[float]] = {name: [] for name, _, _ in STEPS}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        started = time.perf_counter()
        with serving(store) as server:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            timed(page, server, model_page)
            cold = time.perf_counter() - started
            page.close()
            for turn in range(rounds + 1):
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.set_default_timeout(120_000)
                for name, action, _ in STEPS:
                    seconds = timed(page, server, action, whole=not name.endswith("can be read"))
                    if turn:  # the first round imports each page's code
                        found[name].append(seconds)
                page.close()
                print(f"round {turn} of {rounds}")
        browser.close()
    return cold, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        demo = [sys.executable, "-c", "from apps.cli.main import main; raise SystemExit(main())", "run", "ioi"]
        subprocess.run([*demo, "--out", folder, "--name", "demo", "--set", "n_evaluation=4"], check=True)
        cold, found = measure(Path(folder), rounds)
    lines = [
        "# The explorer in a browser",
        "",
        f"`make bench-explorer`: default model, headless Chromium and the server on the same {os.cpu_count()} cores "
        f"({platform.machine()}), a fresh tab in each of {rounds} rounds. Wall seconds until every figure of the page is drawn, unless "
        "said otherwise; a tab needs over a second once to load the code that draws tables and figures.",
        f"From the start of `mechlab ui` to the first whole page about the model: {cold:.1f} s.",
        "",
        "| step | median s | slowest s | limit s |",
        "|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(found[name]):.2f} | {max(found[name]):.2f} | {'–' if limit is None else f'{limit:g}'} |"
            for name, _, limit in STEPS
        ),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
