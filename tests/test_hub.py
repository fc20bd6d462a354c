"""What the Hub may answer, and what the commands make of it: a result, or one sentence with the reason. A small server
on this machine stands in for the Hub; the owner in a name decides how it behaves."""

import hashlib
import json
import re
import shutil
import signal
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from huggingface_hub import constants
from tools import ROOT, Command, opinionated_model, opinions
from typer.testing import CliRunner

from imdb_sentiment import cli_model, hub, model_card  # noqa: F401, commands and their upload
from imdb_sentiment.cli import app
from imdb_sentiment.runs import write_json

SHA = "0123456789abcdef0123456789abcdef01234567"
STATUS = {  # owners whose repositories are refused: status and code of the error
    "gated": (401, "GatedRepo"),
    "missing": (404, "RepoNotFound"),
    "busy": (429, ""),
    "broken": (500, ""),
}


class Answers(BaseHTTPRequestHandler):
    "Answers as the Hub does: about a repository, and with its files."

    def log_message(self, *args):
        pass

    def answer(self, status=200, body=b"", **headers):
        self.send_response(status)
        for name, value in dict(headers, Content_Length=len(body)).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.send_body(body)

    def send_body(self, body):
        owner, weights = self.owner(), self.path.endswith(".safetensors")
        self.wfile.write(body[:1000] if weights and owner in ("cut", "slow") else body)
        if weights and owner == "slow":
            self.server.stop.wait(60)

    def owner(self):
        return re.match(r"(/api)?/(models/|datasets/)?([^/]+)/", self.path)[3]

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        if self.owner() == "silent" or self.server.silent:
            return self.server.stop.wait(60)
        if self.owner() in STATUS:
            status, code = STATUS[self.owner()]
            return self.answer(status, X_Error_Code=code)
        about, folder, file = self.server.find(self.path)
        if file is None:
            return self.answer(body=about, Content_Type="application/json")
        body = (folder / file).read_bytes()
        etag = hashlib.sha256(body).hexdigest()
        self.answer(body=body, ETag=f'"{etag}"', X_Repo_Commit=SHA)

    do_HEAD = do_GET

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(401)


class Hub(ThreadingHTTPServer):
    "A Hub whose repositories are folders: any owner has the same ones."

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Answers)
        self.root, self.asked, self.silent, self.stop = root, [], False, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *args):
        "A client may leave at any time."

    def find(self, path):
        kind, name, file = re.match(
            r"(?:/api)?/(models|datasets)?/?[^/]+/([^/?]+)(?:/resolve/\w+/(.+))?", path
        ).groups()
        folder = self.root / (kind or "models") / name
        names = [dict(rfilename=p.relative_to(folder).as_posix()) for p in folder.rglob("*.*")]
        return json.dumps(dict(id=name, sha=SHA, siblings=names)).encode(), folder, file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "The repositories, and a mark that their Python code would leave."
    root = tmp_path_factory.mktemp("hub")
    model = opinionated_model(root / "models" / "model")
    pickled = shutil.copytree(model, root / "models" / "pickle")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    code = shutil.copytree(model, root / "models" / "code")
    own = dict(model_type="own", auto_map=dict(AutoConfig="own.C", AutoModel="own.M"))
    write_json(code / "config.json", own)
    (code / "own.py").write_text(f"open({str(root / 'CODE-RAN')!r}, 'w')")
    rows = [(text, "good" if share > 0.5 else "bad") for text, share in opinions(60)]
    for name, parts in (("reviews", ("train", "test")), ("no-test", ("train",))):
        (root / "datasets" / name).mkdir(parents=True)
        for part in parts:
            table = pd.DataFrame(rows, columns=["text", "label"])
            table.to_csv(root / "datasets" / name / f"{part}.csv", index=False)
    (root / "datasets" / "script").mkdir()
    (root / "datasets" / "script" / "script.py").write_text("raise SystemExit")
    table.to_parquet(root / "in.parquet")
    table.head(4).to_csv(root / "suite.csv", index=False)
    return root


@pytest.fixture
def server(root, tmp_path, monkeypatch):
    "The Hub, which the commands of this process ask; the cache is empty."
    server = Hub(root)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setattr(hub, "_silent", [])
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def impatient(monkeypatch):
    "Two seconds without an answer are enough."
    monkeypatch.setattr(hub, "bounded", partial(hub.bounded, 2))


@pytest.fixture
def doors(root, tmp_path):
    "The commands that take a model, and those that take data, without its name."
    few = ["--set", "limit=40", "--set", "epochs=1", "--set", "max_length=32"]
    run = ["--run-dir", tmp_path / "run", *few, "--set"]
    folder = root / "in"
    folder.mkdir(exist_ok=True)
    shutil.copy(root / "in.parquet", folder)
    out = ["--out", tmp_path / "out"]
    return dict(
        predict=["predict", "a wonderful film", "--model", ""],
        score=["score", "--input", folder, *out, "--model", ""],
        evaluate=["evaluate", "--suite", root / "suite.csv", *out, "--model", ""],
        serve=["serve", "--port", "0", "--model", ""],
        train=["train", *run, "backbone="],
        report=["report", "--name", "hub", *run, "backbone="],
        check=["check", ""],
        train_data=["train", *run, "data="],
        report_data=["report", "--name", "hub", *run, "data="],
    )


def ask(door, name):
    "What the command does with this name, in this process."
    *args, last = map(str, door)
    return CliRunner().invoke(app, [*args, last + name], input="y\n")


MODEL_DOORS = ("predict", "score", "evaluate", "serve", "train", "report")
DATA_DOORS = ("check", "train_data", "report_data")
MODELS = {
    "missing/model": "no model on the Hugging Face Hub. Check the spelling",
    "gated/model": "this model is gated",
    "busy/model": "too many requests",
    "broken/model": "a fault of its own",
    "fine/pickle": "but pytorch_model.bin, a pickle",
    "fine/code": "this library runs no downloaded code",
}
DATA = {
    "missing/reviews": "no dataset on the Hugging Face Hub. Check the spelling",
    "gated/reviews": "this dataset is gated",
    "busy/reviews": "too many requests",
    "broken/reviews": "a fault of its own",
    "fine/no-test": "has no split 'test'; it has train. Set split_names",
    "fine/script": "this library runs no downloaded code",
}
CASES = [(door, *case) for door in MODEL_DOORS for case in MODELS.items()]
CASES += [(door, *case) for door in DATA_DOORS for case in DATA.items()]


@pytest.mark.parametrize("door, name, reason", CASES)
def test_one_sentence_says_why(server, doors, root, tmp_path, door, name, reason):
    done = ask(doors[door], name)
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1
    assert reason in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (root / "CODE-RAN").exists()
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_a_download_that_breaks_off_is_named(server, doors):
    done = ask(doors["predict"], "cut/model")
    assert done.exit_code == 1
    assert "broke off during the download of model.safetensors. Check the network" in done.stderr


def test_a_silent_hub_is_not_waited_for(server, doors, impatient):
    started = time.monotonic()
    done = ask(doors["predict"], "silent/model")
    assert done.exit_code == 1 and "does not answer" in done.stderr
    assert time.monotonic() - started < 15


def test_a_model_is_looked_up_once_and_kept(server, doors, impatient, monkeypatch):
    done = ask(doors["predict"], "fine/model")
    assert done.exit_code == 0 and done.stdout.startswith("good")
    assert sum("/api/" in request for request in server.asked) == 1
    monkeypatch.setattr(hub, "_found", {})
    server.silent = True
    again = ask(doors["predict"], "fine/model")
    assert again.stdout == done.stdout
    assert "local cache is used" in again.stderr and "HF_HUB_OFFLINE=1" in again.stderr


def test_offline_asks_nobody(server, doors, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = ask(doors["predict"], "fine/model")
    assert "HF_HUB_OFFLINE=1 is set" in done.stderr and not server.asked


def test_training_from_the_hub(server, doors, tmp_path):
    *args, last = doors["train"]
    done = ask(
        [*args, "backbone=fine/model", "--set", last.replace("backbone", "data")], "fine/reviews"
    )
    assert done.exit_code == 0 and (tmp_path / "run" / "model").is_dir()


def test_an_upload_needs_an_account(server, root, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder = shutil.copytree(root / "models" / "model", tmp_path / "export")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    done = CliRunner().invoke(app, ["push", str(folder), "--to", "missing/model", "--confirm"])
    assert done.exit_code == 1 and "Log in with `hf auth login`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


ELSEWHERE = """
from huggingface_hub import constants
constants.ENDPOINT, constants.HF_HUB_OFFLINE = "{0}", False
constants.HUGGINGFACE_CO_URL_TEMPLATE = "{0}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
constants.HF_HUB_CACHE = "{1}/home"
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_stops_at_once(server, doors, tmp_path, number):
    *args, last = map(str, doors["train"])
    process = Command(*args, last + "slow/model", before=ELSEWHERE.format(server.url, tmp_path))
    while not any(re.match("GET .*safetensors", request) for request in server.asked):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in said and not (tmp_path / "run").exists()
