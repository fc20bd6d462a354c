"""The server as a process: load, a kill, a stop in the middle of work, its own OpenAPI turned against it, and its page
in a browser."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from tools import (
    MAIN,
    Server,
    opinionated_model,
    opinions,
    probabilities_by_hand,
    refuses_intruders,
)
from transformers import BertConfig

from imdb_sentiment.tokens import tiny_tokenizer
from imdb_sentiment.model import (
    TransformerClassifier,
    TransformerClassifierConfig,
    save_model,
    write_decisions,
)

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
        assert "Traceback" not in server.stop()


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


def test_the_same_text_again_is_read_once(model):
    ask = lambda body: httpx.post(f"{server.url}/predict", json=body)
    with Server(model, "--cache", "2") as server:
        first = [ask(dict(texts=text)).json() for text in TEXTS[:2]]
        assert [ask(dict(texts=text)).json() for text in TEXTS[:2]] == first
        assert ask(dict(texts=TEXTS[0] + " ")).json() is not None  # another text: the oldest goes
        assert "explanation" in ask(dict(texts=TEXTS[1], explain=True)).json()["predictions"][0]
        ask(dict(texts=TEXTS[0]))
        found = httpx.get(f"{server.url}/health").json()["cache"]
        counted = httpx.get(f"{server.url}/metrics").text
        assert "Traceback" not in server.stop()
    assert (found["answers"], found["hits"], found["misses"]) == (2, 2, 4)
    assert 'cached_texts_total{found="yes"} 2.0' in counted
    assert "batch_texts_sum 5.0" in counted  # four texts, and one to explain


def test_nothing_is_kept_unless_asked(model, server):
    counts = lambda: re.search(r"batch_texts_sum (\S+)", httpx.get(f"{server.url}/metrics").text)[1]
    before = float(counts())
    for _ in range(3):
        httpx.post(f"{server.url}/predict", json=dict(texts=TEXTS[0]))
    assert float(counts()) == before + 3
    assert httpx.get(f"{server.url}/health").json()["cache"] is None


def workers_that_answer(server):
    return {httpx.get(f"{server.url}/health").json()["worker"] for _ in range(20)}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def team(model):
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs Linux and two cores")
    with Server(model, "--workers", "2", "--seconds", "10") as server:
        server.members = psutil.Process(server.process.pid).children()
        yield server
    psutil.wait_procs(server.members, timeout=30)
    assert not [member for member in server.members if member.is_running()]


def test_workers_share_the_port_the_cores_and_the_metrics(team, model):
    assert workers_that_answer(team) == {1, 2}
    cores = [set(member.cpu_affinity()) for member in team.members]
    assert cores[0] | cores[1] == os.sched_getaffinity(0)
    assert not cores[0] & cores[1]
    expected = probabilities_by_hand(model, TEXTS)[:, 1]
    for i in range(40):
        answer = httpx.post(f"{team.url}/predict", json=dict(texts=TEXTS[i % 4])).json()
        found = answer["predictions"][0]["probabilities"]["pos"]
        assert found == pytest.approx(expected[i % 4], abs=0.02)
    for _ in range(4):  # whoever of them is asked
        page = httpx.get(f"{team.url}/metrics").text
        assert 'requests_total{status="200"} 40.0' in page
        assert "waiting_texts 0.0" in page
    with pytest.raises(AssertionError, match="Cannot listen"):
        Server(model, "--workers", "2", "--port", team.url.rpartition(":")[2])
    assert "Traceback" not in team.stop()


def test_a_worker_that_dies_is_started_again(team):
    assert workers_that_answer(team) == {1, 2}
    httpx.post(f"{team.url}/predict", json=dict(texts="a film"))
    team.members[0].kill()
    assert psutil.wait_procs(team.members[:1], timeout=30)[0]
    assert workers_that_answer(team) == {2}
    wait_for(lambda: workers_that_answer(team) == {1, 2})
    assert 'requests_total{status="200"} 1.0' in httpx.get(f"{team.url}/metrics").text
    team.members = psutil.Process(team.process.pid).children()
    assert "Worker 1 was ended by SIGKILL; it is started again." in team.stop()


def test_workers_end_with_the_process_that_started_them(team):
    team.stop(signal.SIGKILL)  # the fixture looks whether they are gone


def test_ctrl_c_stops_all_workers(team):
    out = team.stop(signal.SIGINT)
    assert team.process.returncode == 130
    assert out.endswith("imdb-sentiment: stopped\n")


OPTIONS = [
    (["--workers", "0"], "--workers"),
    (["--workers", "-1"], "--workers"),
    (["--workers", "100000"], "workers=100000: choose 1 to "),
    (["--workers", "many"], "--workers"),
    (["--cache", "-1"], "--cache"),
    (["--cache", "100000000000"], "--cache"),
    (["--cache", "all"], "--cache"),
]


@pytest.mark.parametrize("options, said", OPTIONS)
def test_options_that_make_no_sense(model, options, said):
    command = [*MAIN, "serve", "--model", str(model), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


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


@pytest.fixture(scope="module")
def windows_server(tmp_path_factory):
    "A server whose model has the size that people serve, untrained, and reads long texts in windows of 512 tokens."
    folder = tmp_path_factory.mktemp("windows") / "model"
    tokenizer = tiny_tokenizer([text for text, _ in opinions(100)] + [", . ! ?"] * 2)
    sizes = dict(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    encoder = BertConfig(vocab_size=len(tokenizer), **sizes)
    names = dict(id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    config = TransformerClassifierConfig(encoder, read_length=512, truncation="head", **names)
    save_model(TransformerClassifier(config).eval(), tokenizer, folder)
    write_decisions(folder, long_texts="windows")
    with Server(folder) as server:
        yield server
        assert "Traceback" not in server.stop()


SIZE = 64_000  # of a body, in bytes
SENTENCES = "a dull film , and not at all moving . " * 2000
HEAVY = {  # what asks for much work in few bytes, or is refused late: body, and the status that it may get
    "64 texts to explain": (dict(texts=[SENTENCES[:900]] * 64, explain=True), {413}),
    "a text to explain": (dict(texts=SENTENCES[:5_000], explain=True), {200, 413, 504}),
    "64 texts": (dict(texts=[SENTENCES[:900]] * 64), {200, 413}),
    "a long text": (dict(texts=SENTENCES[: SIZE - 100]), {200, 413}),
    "more windows than it reads": (dict(texts="," * (SIZE - 100)), {413}),
    "one word": (dict(texts="a" * (SIZE - 100), explain=True), {200}),
    "line breaks": (dict(texts="<br " * 16_000 + "a"), {200, 413}),
    "numbers": (dict(texts=[1] * 20_000), {422}),
    "lists": (dict(texts=[[]] * 16_000), {422}),
    "unknown keys": ({f"k{i}": i for i in range(5000)}, {422}),
    "a long key": ({"k" * SIZE: 1}, {422}),
}


def worst_delay(server, body, during=60):
    "The status that the body gets, and the longest time of a one-line request meanwhile."
    with httpx.Client(base_url=server.url, timeout=90) as client, ThreadPoolExecutor(1) as pool:
        headers = {"content-type": "application/json"}
        send = lambda: httpx.post(
            f"{server.url}/predict", content=body, headers=headers, timeout=90
        )
        sent, worst, begin = pool.submit(send), 0, time.monotonic()
        while not sent.done() and time.monotonic() - begin < during:
            start = time.monotonic()
            answer = client.post("/predict", json={"texts": "a dull film"})
            assert answer.status_code == 200, answer.text
            worst = max(worst, time.monotonic() - start)
        return sent.result().status_code, worst


@pytest.mark.parametrize("kind", HEAVY)
def test_a_heavy_request_delays_nobody(windows_server, kind):
    body, allowed = HEAVY[kind]
    status, worst = worst_delay(windows_server, json.dumps(body))
    assert status in allowed
    assert worst < 2


ALPHABETS = [  # of texts: what they are made of
    ["a", " dull", " film", ","],
    ["é", "好", "差", "ह", "ि", " "],
    ["👍", "😀", "👨\u200d👩\u200d👧", "\ufe0f"],
    ["\x00", "\x07", "\u200b", "\ufeff", "\u202e"],
    ["<br>", "<br />", "<br ", "<", "&amp;"],
    [".", "!", "?", " ", "\n", "\t"],
    ["\ud83d", "a"],  # half a character
    ["a"],
    ["1"],
    [" "],
    ["<"],
    ["\u0301"],
    ["\ufdfa"],  # normalised, it has 18 characters
]


def any_text(rng, size):
    "A text of about this many characters."
    alphabet = rng.choice(ALPHABETS)
    return "".join(rng.choices(alphabet, k=max(1, size * len(alphabet) // len("".join(alphabet)))))


def any_value(rng, size):
    "Something that may stand where a text should."
    numbers = [0, -1, 1e308, 10 ** min(size, 4000), float("nan"), float("inf")]
    return rng.choice([any_text(rng, size)] * 6 + [None, True, [], {}, *numbers])


def request(rng, texts):
    return json.dumps(dict(texts=texts, explain=rng.random() < 0.5))


def long_texts(rng, number):
    return request(rng, [any_text(rng, SIZE // number) for _ in range(number)])


def nested(rng):
    depth, kind = rng.choice([50, 900, 1100, 20_000]), rng.choice(['{"texts":', "[", '[{"a":'])
    return rng.choice([kind * depth, '{"texts": ' + "[" * depth + "]" * depth + "}"])


def with_odd_key(rng):
    return json.dumps({any_text(rng, rng.choice([1, 50, 9000])): 1, "texts": "a"})


def with_number(rng):
    digits = rng.choice(["9" * 60_000, "-1e999", "NaN", "0." + "1" * 60_000, "1" * 4000 + "e-9"])
    return f'{{"texts": {digits}}}'


def wrong_types(rng):
    texts = [any_value(rng, 200) for _ in range(rng.choice([1, 5, 64, 65, 1000]))]
    return json.dumps(dict(texts=texts, explain=rng.choice([True, False, "yes", 1, None, []])))


def cut_short(rng):
    whole = long_texts(rng, 20)
    return whole[: rng.randrange(len(whole))]


def otherwise_encoded(rng):
    return request(rng, any_text(rng, 5000)).encode(rng.choice(["utf-16", "utf-32", "latin-1"]))


BODIES = [
    lambda rng: json.dumps(dict(texts=[any_text(rng, 900) for _ in range(64)], explain=True)),
    lambda rng: long_texts(rng, 1),
    lambda rng: long_texts(rng, 64),
    lambda rng: request(rng, any_text(rng, rng.choice([3, 300, 3000]))),
    lambda rng: json.dumps({str(i): any_value(rng, 9) for i in range(rng.choice([1, 3000]))}),
    lambda rng: bytes(rng.choices(range(256), k=rng.choice([1, 100, SIZE]))),
    nested,
    with_odd_key,
    with_number,
    wrong_types,
    cut_short,
    otherwise_encoded,
]


def send_any(server, seed, until, found):
    "Send one hostile body after the other; notes the status of each answer, or the body that has none."
    rng, headers = random.Random(seed), {"content-type": "application/json"}
    with httpx.Client(base_url=server.url, timeout=90, headers=headers) as client:
        while time.monotonic() < until:
            body = rng.choice(BODIES)(rng)
            answer = client.post("/predict", content=body)
            found.append((answer.status_code, body[:200]))
            assert ("predictions" if answer.status_code == 200 else "detail") in answer.json()


def test_hostile_bodies_delay_nobody(windows_server):
    """Half a minute of hostile bodies, one after the other, and a one-line request every 0.2 seconds. FUZZ_SECONDS
    makes it longer, FUZZ_SENDERS sends several bodies at a time."""
    until = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", 30))
    found, delays, seed = [], [], int(os.environ.get("FUZZ_SEED", 1))

    def ask():
        start = time.monotonic()
        answer = client.post("/predict", json={"texts": "a dull film"})
        assert answer.status_code == 200, answer.text
        delays.append(time.monotonic() - start)

    limits = httpx.Limits(max_connections=100)
    with (
        httpx.Client(base_url=windows_server.url, timeout=90, limits=limits) as client,
        ThreadPoolExecutor(50) as pool,
    ):
        senders = range(int(os.environ.get("FUZZ_SENDERS", 1)))
        running = [pool.submit(send_any, windows_server, seed + k, until, found) for k in senders]
        while time.monotonic() < until:
            running.append(pool.submit(ask))
            time.sleep(0.2)
        for future in running:
            future.result()
    print(
        f"{len(found)} hostile bodies; slowest of {len(delays)} one-line requests: {max(delays):.2f} s"
    )
    assert [body for status, body in found if status not in (200, 400, 413, 422, 503, 504)] == []
    assert len({status for status, _ in found}) >= 3  # some are answered, others are refused
    assert max(delays) < 2
    assert httpx.get(f"{windows_server.url}/health").json()["status"] == "ok"


def test_work_stops_at_its_deadline(model):
    "A model that is much slower than it was: the answer is 504, and the steps that are left are not computed."
    from fastapi.testclient import TestClient

    from imdb_sentiment.prediction import Predictor
    from imdb_sentiment.server import make_app

    predictor, rows = Predictor.load(model, "cpu"), []
    score = predictor.score

    def slow(given):
        rows.extend(given)
        time.sleep(0.006 * sum(map(len, given)))
        return score(given)

    predictor.score = slow
    app = make_app(predictor, seconds=2, speed=1000.0)  # steps of 200 tokens, 1.2 seconds each
    client = TestClient(app)
    for body, needed in (
        (dict(texts=["a dull film " * 4] * 60), 60),
        (dict(texts="a dull film " * 7, explain=True), 21 + 2),
    ):
        rows.clear()
        assert client.post("/predict", json=body).status_code == 504
        assert client.post("/predict", json={"texts": "a film"}).status_code == 200
        time.sleep(1.5)
        assert 0 < len(rows) <= needed * 0.8
    app.state.batcher.close()


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
    assert page.is_hidden("#pieces")  # an explanation costs many predictions: only if told
    assert "the rest was left out" in page.text_content("#notes")
    page.keyboard.press("Tab")
    page.focus("#why")
    page.keyboard.press("Enter")
    page.wait_for_selector("#pieces")
    assert page.text_content("#pieces") == long
    assert page.locator("#pieces s").count()  # what was not read
    assert page.locator("#pieces b").count() == 0  # its tags are text
    assert "left out" in page.text_content("#notes")


def test_demo_page_in_a_browser(page):
    from playwright.sync_api import expect

    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json))
    page.click("text=A good one")
    page.click("text=Which words matter?")
    expect(page.locator("#pieces")).to_contain_text("I laughed", timeout=60_000)
    page.fill("#text", "  ")
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("empty", timeout=60_000)
    assert [body["explain"] for body in asked] == [False, True, False]
    page.click("text=A mixed one")
    page.wait_for_selector("#result:not([hidden])")


def test_no_script_of_others_runs_on_the_page(server, browser):
    page = browser.new_page()
    page.goto(server.url)
    refuses_intruders(page)
    page.close()


def test_policy_of_the_documentation(server, browser):
    "Its own script starts, that of the other host is let through, and nothing is refused by the policy."
    page, errors = browser.new_page(), []
    page.on("console", lambda m: errors.append(m.text) if "policy" in m.text.lower() else None)
    script = "window.SwaggerUIBundle = options => { window.started = options.url; };"
    script += "SwaggerUIBundle.presets = {}; SwaggerUIBundle.SwaggerUIStandalonePreset = {};"
    page.route("**/*.js", lambda route: route.fulfill(content_type="text/javascript", body=script))
    page.route("**/*.css", lambda route: route.fulfill(content_type="text/css", body="a {}"))
    page.route("**/*.png", lambda route: route.fulfill(content_type="image/png", body=b""))
    page.goto(f"{server.url}/docs")
    assert page.evaluate("window.started") == "openapi.json"
    assert errors == []
    page.close()
