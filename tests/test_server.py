"The server as a process: load, a kill, a stop in the middle of work, its own OpenAPI turned against it, and its page in a browser."
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

from imdb_sentiment.config import Config
from imdb_sentiment.data import tiny_tokenizer
from imdb_sentiment.model import make_model, save_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TEXTS = ["a wonderful film", "a dull film", "a film", "wonderful , wonderful and not dull at all " * 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny-model"
    tokenizer = tiny_tokenizer(TEXTS * 5)
    save_model(make_model(Config(max_length=32, truncation="head+tail", label_names=("neg", "pos")), tokenizer), tokenizer, folder)
    return folder


class Server:
    def __init__(self, model, *args, key=""):
        self.process = subprocess.Popen([sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()", "serve", "--model", str(model), "--port", "0", *args],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "IMDB_SENTIMENT_API_KEY": key})
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.url = found[0]
                break
        else:
            raise AssertionError("".join(lines))

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=60)
        return out

    def __enter__(self): return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(model):
    with Server(model) as server:
        yield server
        assert server.process.poll() is None, "the server died during the tests"


def test_many_ask_at_once_and_all_get_their_own_answer(server):
    with httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=32)) as client:
        alone = [client.post("/predict", json={"texts": t}).json()["predictions"][0] for t in TEXTS]
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda i: client.post("/predict", json={"texts": TEXTS[i % 4]}), range(800)))
        assert {a.status_code for a in answers} == {200}
        for i, a in enumerate(answers):
            found = a.json()["predictions"][0]
            assert found["label"] == alone[i % 4]["label"] and abs(found["probability"] - alone[i % 4]["probability"]) < 1e-2
        counted = re.search(r'requests_total\{status="200"\} (\d+)', client.get("/metrics").text)
        assert int(counted[1]) >= 804


def test_a_stop_answers_what_was_accepted(model):
    ask = {"texts": [f"{TEXTS[3]} {i}" for i in range(16)], "explain": True}
    with Server(model, "--seconds", "120") as server, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, f"{server.url}/predict", json=ask, timeout=150) for _ in range(4)]
        accepted = 0
        while accepted < 64: # a request that was not read when the server stops is refused: wait until all four are in
            page = httpx.get(f"{server.url}/metrics").text
            accepted = sum(float(re.search(rf"(?m)^{name} (\S+)", page)[1]) for name in ("batch_texts_sum", "waiting_texts"))
        out = server.stop()
        answers = [a.result() for a in asked]
    assert [a.status_code for a in answers] == [200] * 4
    assert all(len(a.json()["predictions"]) == 16 for a in answers)
    assert "Traceback" not in out


def test_after_a_kill_it_starts_again_on_the_same_port(model):
    with Server(model) as first:
        port = first.url.rpartition(":")[2]
        before = httpx.post(f"{first.url}/predict", json={"texts": TEXTS}).json()
        first.stop(signal.SIGKILL)
    with Server(model, "--port", port) as second:
        assert second.url.endswith(port) and httpx.post(f"{second.url}/predict", json={"texts": TEXTS}).json() == before
        with pytest.raises(AssertionError, match="Cannot listen"):
            Server(model, "--port", port)


def test_key_from_the_environment(model):
    with Server(model, key="a secret") as server:
        assert [httpx.post(f"{server.url}/predict", json={"texts": "a film"}, headers=h).status_code for h in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "a secret"})] == [401, 401, 200]


def test_hostile_bodies(server):
    post = lambda **kwargs: httpx.post(f"{server.url}/predict", timeout=60, **kwargs)
    assert post(json={"texts": "a" * 10_000_000}).status_code == 413
    assert post(json={"texts": "a dull film " * 8000}).status_code == 200 # 100,000 characters
    assert post(content=b"\x00" * 1000, headers={"content-type": "application/json"}).status_code in (400, 422)
    assert post(content=b"[" * 100_000, headers={"content-type": "application/json"}).status_code in (400, 422)
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def test_fuzzed_from_its_own_openapi(server, tmp_path):
    # a schema cannot say that a text needs a visible character, so a refusal of one without is no fault
    done = subprocess.run([str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json", "--max-examples", "40", "--seed", "1", "--no-color", "--exclude-checks", "positive_data_acceptance"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_demo_page_in_a_browser(server, browser, width):
    from playwright.sync_api import expect
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(server.url)
    long = "a wonderful film 😀 " + "and so on " * 60 + "a dull <b>film</b>"
    page.keyboard.press("Tab") # by keyboard alone
    page.keyboard.insert_text(long)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])")
    assert re.fullmatch(r"(neg|pos), \d+\.\d % sure", page.text_content("#answer"))
    assert page.text_content("#pieces") == long and page.locator("#pieces s").count() and page.locator("#pieces b").count() == 0
    assert "left out" in page.text_content("#notes")
    page.click("text=A good one")
    expect(page.locator("#pieces")).to_contain_text("I laughed", timeout=60_000)
    page.fill("#text", "  ")
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("empty", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("text=A mixed one")
    page.wait_for_selector("#result:not([hidden])")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/demo-{width}.png", full_page=True)
    assert [e for e in errors if "422" not in e] == []
