"""A person in JupyterLab: 00 from records, one changed arm trained, interrupted, gone on with. Needs a browser (Debian: chromium)."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no browser: install Debian's chromium"),
    pytest.mark.timeout(600),
]
WIDTH = 1200  # nothing of the code may be cut at this width; so high that JupyterLab leaves nothing out


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Address of a JupyterLab over a copy of 00, and the folder to which it trains and draws."""
    home = tmp_path_factory.mktemp("jupyter")
    root = Path(__file__).resolve().parents[1]
    (home / "notebooks").mkdir()
    shutil.copy(root / "notebooks" / "00_first_run.ipynb", home / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = ("CPTLAB_RUNS", "CPTLAB_FIGURES", "CPTLAB_PROGRESS", "MPLBACKEND")  # of the tests
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"CPTLAB_ROOT": str(root), "CPTLAB_LOCAL": str(home / "local"), "JUPYTER_CONFIG_DIR": str(home), "JUPYTER_DATA_DIR": str(home)}
    env |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join([str(root / "lib"), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=t"]
    options += [f"--ServerApp.root_dir={home / 'notebooks'}", "--LabApp.news_url=None"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api?token=t", timeout=2)
                break
            except OSError:
                time.sleep(0.25)
        yield address, home / "local"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def page(server) -> Iterator:
    """The notebook, open and with a kernel that is idle."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 12_000})
        page.goto(f"{server[0]}/lab/tree/00_first_run.ipynb?token=t&reset")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=90_000)
        yield page
        browser.close()


def menu(page, *names: str) -> None:
    page.click(f".lm-MenuBar-item >> text={names[0]}")
    page.click(f".lm-Menu-item >> text={names[1]}")


def outputs(page) -> str:
    """The text of all outputs of code cells, from the top."""
    return "\n".join(page.locator(".jp-OutputArea-output").all_inner_texts())


def wait_for(page, pattern: str, seconds: float = 240) -> str:
    """What the outputs say once they match; fails with all that they say."""
    limit = time.monotonic() + seconds
    while not re.search(pattern, text := outputs(page)):
        assert time.monotonic() < limit, f"no {pattern!r} in:\n{text}"
        assert "Traceback" not in text, text
        page.wait_for_timeout(200)
    return text


def test_from_records_nothing_is_trained_and_no_code_is_cut(page, server):
    menu(page, "Run", "Run All Cells")
    text = wait_for(page, r"half replay")
    assert text.count("cached") == 3 and "knowing nothing: 7.62 nats" in text and "go to" not in text
    assert (server[1] / "figures" / "00_first_run.png").is_file()  # unchanged: to the place of the figures
    assert not list((server[1] / "local").glob("*/run.json"))
    page.wait_for_selector(".jp-OutputArea-output img")
    cut = "cells => cells.filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.innerText)"
    assert page.locator(".jp-CodeCell .cm-scroller").evaluate_all(cut) == []


def test_a_changed_arm_is_trained_interrupted_and_gone_on_with(page, server):
    cell = page.locator(".jp-CodeCell .cm-content").first
    cell.click()
    page.keyboard.press("Control+a")
    dials = 'profile = "smoke"\nreplay = 0.5\ntarget_tokens = 1_200_000\ntarget = size = seed = lr = base_tokens = None'
    page.keyboard.insert_text(dials)
    menu(page, "Run", "Run All Cells")
    wait_for(page, r"0 of 3 runs done, 1 running")  # a line of text before anything can be drawn
    wait_for(page, r"with replay: step [1-9]\d* of")
    menu(page, "Kernel", "Interrupt Kernel")
    text = wait_for(page, r"Run the cell again to go on")
    stopped = re.search(r"with replay: stopped at step (\d+) of \d+, (?:saved there, goes on from there|goes on from step \d+)", text)
    assert stopped and "KeyboardInterrupt" not in text.replace("KeyboardInterrupt: ", "", 1)
    menu(page, "Run", "Run All Cells")
    text = wait_for(page, r"(\d) of \1 runs done in .*\n[\s\S]*half replay")  # the last line and picture stay
    assert not re.search(r"\d+ running|stopped", text)
    assert "not to" in text and "the profile is smoke" in text  # where the figures went
    assert list(server[1].glob("notebooks/smoke/*/figures/00_first_run.png"))
