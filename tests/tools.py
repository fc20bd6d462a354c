"""What several tests share: the command, a server, and a small model with clear opinions whose predictions can be
computed without this library."""

import atexit
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from imdb_sentiment.config import Config
from imdb_sentiment.tokens import tiny_tokenizer
from imdb_sentiment.model import make_model, save_model, write_decisions

ROOT = Path(__file__).parents[1]
MADE = {}  # what one file of tests made, and another one in the same process uses: name to folder
MAIN = [sys.executable, "-c", "from imdb_sentiment.cli import main; main()"]


LIBRARY = sorted(p.stem for p in (ROOT / "imdb_sentiment").glob("[a-z]*.py"))


@lru_cache(maxsize=1)
def warm():
    "Where processes come from that have imported already what commands import; importing takes seconds each time."
    context = multiprocessing.get_context("forkserver")
    models = ("align", "bert", "encoder_decoder")  # which the automatic classes look at
    context.set_forkserver_preload(
        ["torch", "pyarrow.parquet", *(f"transformers.models.{name}" for name in models)]
        + [f"imdb_sentiment.{name}" for name in LIBRARY]
    )
    return context


def in_this_process(args, cwd, env, streams, before):
    "Be the command: its arguments, folder, environment and streams, and first some code, such as a fault."
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.argv = ["imdb-sentiment", *args]
    try:
        exec(before + "\nfrom imdb_sentiment.cli import main\nmain()", dict(__name__="__main__"))
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


class Command:
    """`imdb-sentiment` with these arguments as a process of its own, forked from one that is warm. What depends on a
    new interpreter, such as what is imported, is tested with `MAIN`."""

    def __init__(self, *args, cwd=None, env=None, input="", before="", merged=False):
        self.args = [str(a) for a in args]
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        said, out, err = (folder / name for name in ("in", "out", "err"))
        said.write_text(input, encoding="utf-8")
        self.out, self.err = out, out if merged else err
        for path in (self.out, self.err):
            path.touch()
        streams = [str(path) for path in (said, self.out, self.err)]
        given = (self.args, str(cwd or os.getcwd()), dict(env or os.environ), streams, before)
        self.process = warm().Process(target=in_this_process, args=given)
        self.process.start()
        self.pid = self.process.pid
        self.kill, self.poll = self.process.kill, lambda: self.returncode

    @property
    def returncode(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            self.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.args, timeout, *self.said())
        return self.returncode

    def said(self):
        read = lambda path: path.read_text(encoding="utf-8", errors="surrogateescape")
        return read(self.out), read(self.err)

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.said()


def command(*args, timeout=300, **options):
    "What `imdb-sentiment` does with these arguments; its output as text."
    process = Command(*args, **options)
    said = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def fresh_command(*args, **options):
    "The same in a new interpreter, for what does not start in a forked process, such as Ray."
    given = (
        dict(capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=300) | options
    )
    return subprocess.run([*MAIN, *map(str, args)], **given)


def failed_politely(done, said):
    "Assert that a command ended with one sentence and no traceback."
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1


WORDS = (
    "a",
    "film",
    "the",
    "plot",
    "is",
    "and",
    "not",
    "at",
    "all",
    "so",
    "on",
    "of",
    "scene",
    "actor",
    "it",
)
OPINIONS = dict(good=("wonderful", "great", "moving"), bad=("dull", "awful", "weak"))
TEMPERATURE = 0.5  # far from 1: predictions that leave it out are off by about a tenth


def opinions(n, seed=0):
    "Texts of neutral words and up to six words of opinion, each with the share of its opinions that are good."
    rng, rows = random.Random(seed), []
    for _ in range(n):
        said = [
            (rng.choice(OPINIONS[kind]), kind)
            for kind in rng.choices(("bad", "good"), k=rng.randint(1, 6))
        ]
        words = [*rng.choices(WORDS, k=rng.randint(1, 12)), *(word for word, _ in said)]
        rng.shuffle(words)
        good = sum(kind == "good" for _, kind in said)
        rows.append((" ".join(words), (good + 0.25) / (len(said) + 0.5)))
    return rows


def spread(share, n):
    "Probabilities of n labels in order whose mean is at this share of the scale."
    return [max(0.0, 1 - abs(share * (n - 1) - label)) for label in range(n)]


def opinionated_model(folder, labels=("bad", "good"), max_length=32, **settings):
    "Save a tiny model whose probabilities follow the share of good words; a loop of its own trains it in a second."
    rows = opinions(800)
    tokenizer = tiny_tokenizer([text for text, _ in rows] + [", . ! ?"] * 2)
    model = make_model(
        Config(max_length=max_length, label_names=labels, **settings), tokenizer
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for start in range(0, len(rows), 20):
        texts, good = zip(*rows[start : start + 20])
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        wanted = torch.tensor([spread(share, len(labels)) for share in good])
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.eval(), tokenizer, folder)
    write_decisions(folder, logit_temperature=TEMPERATURE)
    return folder


def probabilities_by_hand(folder, texts):
    "Probability of each label for each text (texts x labels), by PyTorch and plain BERT: one text at a time, in fp32."
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    decisions = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bert = BertModel(BertConfig(**config["encoder"]), add_pooling_layer=False).eval()
    bert.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    )
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        room = config["read_length"] - 2
        if len(ids) > room + 2:
            inner, head = (
                ids[1:-1],
                {"head": room, "tail": 0, "head+tail": room // 2}[config["truncation"]],
            )
            ids = [ids[0], *inner[:head], *inner[len(inner) - (room - head) :], ids[-1]]
        with torch.inference_mode():
            vectors = bert(torch.tensor([ids])).last_hidden_state[0]
            logits = weights["head.weight"] @ vectors.mean(0) + weights["head.bias"]
            logits = logits / decisions["logit_temperature"]
            several = config["task"] == "multilabel"
            rows.append(torch.sigmoid(logits) if several else torch.softmax(logits, 0))
    return torch.stack(rows).numpy()


class Server:
    "`imdb-sentiment serve` as a process, on any free port."

    def __init__(self, model, *args, key=""):
        env = {**os.environ, "IMDB_SENTIMENT_API_KEY": key}
        options = ("serve", "--model", model, "--port", "0", *args)
        self.process = Command(*options, env=env, merged=True)
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", self.process.said()[0])):
            assert self.process.poll() is None, self.process.said()[0]
            time.sleep(0.02)
        self.url = found[0]

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=60)
        return out

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)


INTRUDE = """async () => {
    const refused = [];
    document.addEventListener("securitypolicyviolation", e => refused.push(e.effectiveDirective));
    document.body.insertAdjacentHTML("beforeend", "<img src=https://a.example/x onerror='window.ran = 1'>");
    const script = document.createElement("script");
    script.textContent = "window.ran = 2";
    document.body.append(script);
    await fetch("https://a.example").catch(() => {});
    await new Promise(done => setTimeout(done, 200));
    return [refused, window.ran];
}"""


def refuses_intruders(page):
    "Assert that a page in a browser runs no script of others, and asks no other host."
    refused, ran = page.evaluate(INTRUDE)
    assert set(refused) == {"img-src", "script-src-elem", "script-src-attr", "connect-src"}
    assert ran is None
