"""JupyterLab, driven in a real browser: chapters are opened, all cells run, nothing fails. LAB_CHAPTERS=all drives
every chapter of the pipeline."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from shutil import which

import pytest

pytest.importorskip("jupyterlab")
from tools import ROOT  # noqa: E402

from imdb_sentiment.config import Config  # noqa: E402
from imdb_sentiment.staleness import chapters_of  # noqa: E402

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
ALL = [c.name for c in chapters_of(Config())]
CHAPTERS = ALL if os.environ.get("LAB_CHAPTERS") == "all" else ALL[:3]
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy, so that running and saving leaves the notebooks alone."
    folder = tmp_path_factory.mktemp("lab")
    leave_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "imdb_sentiment"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


OPTIONS = [
    "--no-browser",
    "--allow-root",
    "--port=0",
    "--ip=127.0.0.1",
    "--IdentityProvider.token=open",
]


@pytest.fixture(scope="module")
def lab(project):
    "The address of a running JupyterLab."
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        *OPTIONS,
        f"--notebook-dir={project / 'nbs'}",
    ]
    env = {**os.environ, "PYTHONPATH": str(project), "TOKENIZERS_PARALLELISM": "false"}
    log = project / "lab.log"
    with open(log, "w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=project)
    for _ in range(120):
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/lab\?token", log.read_text()):
            break
        time.sleep(0.5)
    else:
        raise RuntimeError(log.read_text()[-2000:])
    yield f"http://127.0.0.1:{found[1]}"
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_page(viewport=dict(width=1280, height=900))
        chromium.close()


def choose_run_all(page, lab, name):
    "Open a chapter and choose Run All Cells from the menu, when its kernel is there."
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token=open&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=60_000)  # in the status bar
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def saved_cells(page, path):
    "The code cells of the notebook as it is at the moment, saved by keyboard."
    page.keyboard.press("Control+s")
    page.wait_for_timeout(500)
    saved = json.loads(path.read_text(encoding="utf-8"))
    return [c for c in saved["cells"] if c["cell_type"] == "code" and c["source"]]


def run_all(page, lab, project, name, seconds=120):
    "Run a chapter in the browser; its code cells with their outputs."
    choose_run_all(page, lab, name)
    idle = page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        page.wait_for_timeout(500)
        if accept.count():
            accept.first.click()  # a slow machine is asked which kernel it wants
        code = saved_cells(page, project / "nbs" / f"{name}.ipynb")
        failed = [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
        assert not failed, (name, failed[0]["ename"], failed[0]["evalue"])
        ran = sum(c["execution_count"] is not None for c in code)
        if ran == len(code) and idle.count():
            return code
    page.screenshot(path=project / f"{name}-unfinished.png")
    raise AssertionError(
        f"{name}: {ran} of {len(code)} cells ran within {seconds} s, screenshot in {project}"
    )


def test_chapters_run_in_the_browser(page, lab, project):
    started, found = time.monotonic(), {}
    for name in CHAPTERS:
        begun = time.monotonic()
        found[name] = run_all(page, lab, project, name)
        print(f"{name}: {time.monotonic() - begun:.0f} s")
        page.screenshot(path=project / f"{name}.png")
    seconds = time.monotonic() - started
    print(f"{len(CHAPTERS)} chapters: {seconds:.0f} s, screenshots in {project}")
    assert seconds < 300
    outputs = [o for c in found["01e_exploration"] for o in c["outputs"]]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    # the page shows what the notebook holds
    assert page.locator(".jp-RenderedImage img, .jp-RenderedHTMLCommon table").count()
