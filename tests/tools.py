"""What several tests share: the command, a server, and a small model with clear opinions whose predictions can be
computed without this library."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from imdb_sentiment.config import Config
from imdb_sentiment.tokens import tiny_tokenizer
from imdb_sentiment.model import make_model, save_model, write_decisions

ROOT = Path(__file__).parents[1]
MAIN = [sys.executable, "-c", "from imdb_sentiment.cli import main; main()"]


def command(*args, **options):
    "What `imdb-sentiment` does with these arguments; its output as text."
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
        wanted = torch.tensor([[1 - share, share] for share in good])
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
            rows.append(torch.softmax(logits / decisions["logit_temperature"], 0))
    return torch.stack(rows).numpy()


class Server:
    "`imdb-sentiment serve` as a process, on any free port."

    def __init__(self, model, *args, key=""):
        command = [*MAIN, "serve", "--model", str(model), "--port", "0", *args]
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = subprocess.Popen(
            command, env={**os.environ, "IMDB_SENTIMENT_API_KEY": key}, **streams
        )
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
