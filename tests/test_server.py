"""The server as a process: load, a kill, a stop in the middle of work, its own OpenAPI turned against it, and its page
in a browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tools import Server, opinionated_model, probabilities_by_hand

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
TEXTS = [
    "a wonderful film",
    "a dull film",
    "a film",
    "wonderful , wonderful and not dull at all " * 5,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    return opinionated_model(folder, labels=("neg", "pos"), truncation="head+tail")


@pytest.fixture(scope="module")
def server(model):
    with Server(model) as server:
        yield server
        assert server.process.poll() is None, "the server died during the tests"


def test_many_ask_at_once_and_all_get_their_own_answer(model, server):
    expected = probabilities_by_hand(model, TEXTS)[:, 1]
    apart = sorted(expected)
    assert (
        min(b - a for a, b in zip(apart, apart[1:])) > 0.04
    )  # the answer to another text would be seen
    limits = httpx.Limits(max_connections=32)
    with (
        httpx.Client(base_url=server.url, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(32) as pool,
    ):
        ask = lambda i: client.post("/predict", json={"texts": TEXTS[i % 4]})
        answers = list(pool.map(ask, range(800)))
        counted = re.search(r'requests_total\{status="200"\} (\d+)', client.get("/metrics").text)
    assert {a.status_code for a in answers} == {200}
    assert int(counted[1]) >= 800
    for i, a in enumerate(answers):
        (found,) = a.json()["predictions"]
        assert found["probabilities"]["pos"] == pytest.approx(expected[i % 4], abs=0.02)


def test_a_stop_answers_what_was_accepted(model):
    ask = {"texts": [f"{TEXTS[3]} {i}" for i in range(16)], "explain": True}
    with Server(model, "--seconds", "120") as server, ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(httpx.post, f"{server.url}/predict", json=ask, timeout=150)
            for _ in range(4)
        ]
        accepted = 0
        while (
            accepted < 64
        ):  # a request that was not read when the server stops is refused: all four must be in
            page = httpx.get(f"{server.url}/metrics").text
            counts = [
                re.search(rf"(?m)^{name} (\S+)", page)[1]
                for name in ("batch_texts_sum", "waiting_texts")
            ]
            accepted = sum(map(float, counts))
        out = server.stop()
        answers = [a.result() for a in asked]
    assert [a.status_code for a in answers] == [200] * 4
    assert all(len(a.json()["predictions"]) == 16 for a in answers)
    assert "Traceback" not in out


def test_after_a_kill_it_starts_again_on_the_same_port(model):
    ask = lambda server: httpx.post(f"{server.url}/predict", json={"texts": TEXTS}).json()
    with Server(model) as first:
        port = first.url.rpartition(":")[2]
        before = ask(first)
        first.stop(signal.SIGKILL)
    with Server(model, "--port", port) as second:
        assert second.url.endswith(port)
        assert ask(second) == before
        with pytest.raises(AssertionError, match="Cannot listen"):
            Server(model, "--port", port)


KEYS = [  # headers of a request, and the status that it gets
    ({}, 401),
    ({"X-API-Key": ""}, 401),
    ({"X-API-Key": "wrong"}, 401),
    ({"X-API-Key": "a secret and more"}, 401),
    ({"X-API-Key": "a secret"}, 200),
]


def test_key_from_the_environment(model):
    with Server(model, key="a secret") as server:
        for headers, status in KEYS:
            answer = httpx.post(f"{server.url}/predict", json={"texts": "a film"}, headers=headers)
            assert answer.status_code == status, headers
            assert httpx.get(f"{server.url}/metrics", headers=headers).status_code == status, (
                headers
            )


JSON = {"content-type": "application/json"}
HOSTILE = {  # what is sent, and the status that it may get
    "10 MB": (dict(json={"texts": "a" * 10_000_000}), {413}),
    "100,000 characters": (dict(json={"texts": "a dull film " * 8000}), {200}),
    "zeros": (dict(content=b"\x00" * 1000, headers=JSON), {422}),
    "brackets": (
        dict(content=b"[" * 100_000, headers=JSON),
        {400, 422},
    ),  # by what the Python version raises
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bodies(server, kind):
    body, allowed = HOSTILE[kind]
    assert httpx.post(f"{server.url}/predict", timeout=60, **body).status_code in allowed
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def test_fuzzed_from_its_own_openapi(server, tmp_path):
    # a schema cannot say that a text needs a visible character, so a refusal of one without is no fault
    program = Path(sys.executable).with_name("schemathesis")
    options = [
        "--max-examples",
        "40",
        "--seed",
        "1",
        "--no-color",
        "--exclude-checks",
        "positive_data_acceptance",
    ]
    command = [str(program), "run", f"{server.url}/openapi.json", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


QUIETLY = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
        yield browser
        browser.close()


@pytest.fixture(params=[360, 1200])
def page(server, browser, request):
    "The demo page, opened at this width; at the end, nothing but refusals may stand in its console."
    page, errors = browser.new_page(viewport={"width": request.param, "height": 800}), []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(server.url)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/demo-{request.param}.png", full_page=True)
    page.close()
    assert [e for e in errors if "422" not in e] == []


def test_demo_page_by_keyboard_alone(page):
    long = "a wonderful film 😀 " + "and so on " * 60 + "a dull <b>film</b>"
    page.keyboard.press("Tab")
    page.keyboard.insert_text(long)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])")
    assert re.fullmatch(r"(neg|pos), \d+\.\d% sure", page.text_content("#answer"))
    assert page.text_content("#pieces") == long
    assert page.locator("#pieces s").count()  # what was not read
    assert page.locator("#pieces b").count() == 0  # its tags are text
    assert "left out" in page.text_content("#notes")


def test_demo_page_in_a_browser(page):
    from playwright.sync_api import expect

    page.click("text=A good one")
    expect(page.locator("#pieces")).to_contain_text("I laughed", timeout=60_000)
    page.fill("#text", "  ")
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("empty", timeout=60_000)
    page.click("text=A mixed one")
    page.wait_for_selector("#result:not([hidden])")
