"Bad input at each door: the function, the command, the server and Ray. Every row gets a right answer or a reason, and no door shows a traceback."
import gzip
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from imdb_sentiment.config import Config, RunError
from imdb_sentiment.data import tiny_tokenizer
from imdb_sentiment.inference import InputError, Predictor
from imdb_sentiment.model import make_model, save_model
from test_server import Server

# What somebody may take for a review, and what the refusal says; None where there is an answer.
TEXTS = {
    "a review": ("a wonderful film", None),
    "empty": ("", "empty or blank"),
    "spaces": ("   ", "empty or blank"),
    "line ends and tabs": ("\r\n\t\n", "empty or blank"),
    "only a no-break space": ("\u00a0\u2003", "empty or blank"),
    "only zero-width characters": ("\u200b\u200d\ufeff", "empty or blank"),
    "only control characters": ("\x00\x01\x1b", "empty or blank"),
    "only HTML line breaks": ("<br /><br />", "empty or blank"),
    "null": (None, "missing"),
    "not a number": (math.nan, "missing"),
    "a number": (42, "of type int"),
    "a fraction": (0.5, "of type float"),
    "a truth value": (True, "of type bool"),
    "a list": (["a film"], "of type list"),
    "a dict": ({"text": "a film"}, "of type dict"),
    "a lone surrogate": ("a \ud83d film", None),
    "a surrogate pair in two halves": ("a \ud83d\ude00 film", None),
    "10 MB": ("a film " * 1_500_000, "characters; at most"),
    "100,000 characters": ("a dull film " * 8400, None),
    "one word of 50,000 letters": ("a" * 50_000, None),
    "a null byte inside": ("a film\x00 wonderful", None),
    "Chinese": ("这部电影非常精彩", None),
    "Arabic": ("فيلم رائع جدا", None),
    "right-to-left override": ("a \u202emlif\u202c film", None),
    "emoji": ("😀👩‍👩‍👧‍👦🏳️‍🌈", None),
    "stacked accents": ("f" + "\u0301" * 300 + "ilm", None),
    "HTML": ("<div onclick='x()'>a <b>dull</b> film</div>", None),
    "a script": ("<script>alert(1)</script>", None),
    "special tokens": ("[CLS] a film [SEP] [PAD] [MASK]", None),
    "a formula of a spreadsheet": ('=HYPERLINK("http://x","y")', None),
    "quotes, commas and line ends": ('she said "no, never",\nand, left\n', None),
    "a path": ("../../etc/passwd", None),
    "a byte order mark": ("\ufeffa film", None),
    "one sign": ("?", None),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors") / "tiny-model"
    words = ["a wonderful film", "a dull film"] * 5
    tokenizer = tiny_tokenizer(words)
    save_model(make_model(Config(max_length=32, label_names=("bad", "good")), tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def right(model):
    "The label of each text that can be judged, asked for one at a time."
    predictor = Predictor.load(model, "cpu")
    return {k: predictor(text).label for k, (text, refusal) in TEXTS.items() if refusal is None}


def command(*args, stdin=None):
    return subprocess.run([sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()", *map(str, args)], input=stdin, capture_output=True, timeout=300)


@pytest.mark.parametrize("kind", TEXTS)
def test_function(model, right, kind):
    text, refusal = TEXTS[kind]
    predictor = Predictor.load(model, "cpu")
    if refusal is None:
        assert predictor([text, "a film"])[0].label == right[kind] and 0.5 <= predictor(text).probability <= 1
    else:
        with pytest.raises(InputError, match=refusal):
            predictor([text])


@pytest.mark.parametrize("value", [b"a film", np.float32(1), pd.Timestamp("2026-01-01"), object(), 1 + 2j])
def test_function_other_types(model, value):
    with pytest.raises(InputError, match="of type"):
        Predictor.load(model, "cpu")([value])


def test_command_jsonl(model, right, tmp_path):
    lines = [json.dumps(dict(kind=k, text=t)) for k, (t, _) in TEXTS.items()]
    faults = {"": "", "{": "no JSON", "[1, 2]": "object", '"a film"': "object", '{"review": "a film"}': "there is no 'text'", '{"text": "a film", "prediction": 1}': "already"}
    (tmp_path / "in.jsonl").write_bytes(("\n".join([*lines, *faults]) + "\n").encode() + b'{"text": "caf\xe9"}\n')
    done = command("predict", "--model", model, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl", "--device", "cpu")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    answers = [json.loads(line) for line in open(tmp_path / "out.jsonl")]
    assert {a["kind"]: a["prediction"] for a in answers} == right
    reasons = {r["line"]: r["reason"] for r in map(json.loads, open(tmp_path / "out.jsonl.rejected.jsonl"))}
    refused = {i: r for i, (_, r) in enumerate(TEXTS.values(), 1) if r}
    assert all(r in reasons[i] for i, r in refused.items())
    blank = [i for i in range(len(lines) + 1, len(lines) + len(faults) + 2) if i not in reasons]
    assert blank == [len(lines) + 1], reasons # an empty line between rows is no row


def test_command_csv(model, right, tmp_path):
    strings = {k: t for k, (t, _) in TEXTS.items() if isinstance(t, str) and "\x00" not in t and "\ud83d" not in t}
    frame = pd.DataFrame(dict(kind=strings.keys(), text=strings.values()))
    frame.to_csv(tmp_path / "in.csv", index=False)
    with open(tmp_path / "in.csv", "ab") as f:
        f.write(b"too short\ntoo,many,cells\nlatin,caf\xe9\n")
    done = command("predict", "--model", model, "--input", tmp_path / "in.csv", "--out", tmp_path / "out.csv", "--device", "cpu")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    answers = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert dict(zip(answers.kind, answers.prediction)) == {k: v for k, v in right.items() if k in strings}
    rejected = [json.loads(line) for line in open(tmp_path / "out.csv.rejected.jsonl")]
    assert len(answers) + len(rejected) == len(strings) + 3


FILES = {
    "in.csv": (b"", "no header|empty"),
    "column.csv": (b"review,label\na film,1\n", "no column 'text'"),
    "taken.csv": (b"text,prediction\na film,1\n", "already"),
    "twice.csv": (b"text,text\na film,1\n", "twice|more than once"),
    "utf16.csv": ("text\na film\n".encode("utf-16"), "no column 'text'|UTF-8"),
    "packed.csv": (gzip.compress(b"text\na film\n"), "no column 'text'|UTF-8"),
    "broken.parquet": (b"PAR1 and then nothing", "no parquet file"),
    "empty.parquet": (b"", "no parquet file"),
    "book.xlsx": (b"PK\x03\x04", "ending tells the format"),
    "no-ending": (b"a film\n", "ending tells the format"),
}


@pytest.mark.parametrize("name", FILES)
def test_command_files(model, tmp_path, name):
    from imdb_sentiment.files import predict_file
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        predict_file(Predictor.load(model, "cpu"), tmp_path / name, tmp_path / ("out" + Path(name).suffix))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_command_places(model, tmp_path):
    (tmp_path / "in.txt").write_text("a film\n")
    (tmp_path / "there.jsonl").write_text("mine")
    for args, said in [(["--input", tmp_path / "none.csv", "--out", tmp_path / "o.csv"], "there is no file"), (["--input", tmp_path, "--out", tmp_path / "o.csv"], "ending"),
                       (["--input", tmp_path / "in.txt", "--out", tmp_path / "there.jsonl"], "exists already"), (["--input", tmp_path / "in.txt"], "belong together")]:
        done = command("predict", "--model", model, "--device", "cpu", *args)
        assert done.returncode == 1 and said in done.stderr.decode() and b"Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def damaged(model, tmp_path, how):
    "A folder that is no usable model."
    folder = tmp_path / "model"
    if how == "missing": return folder
    if how == "a file":
        folder.write_text("weights")
        return folder
    shutil.copytree(model, folder)
    if how == "empty":
        for p in folder.iterdir(): p.unlink()
    elif how == "no weights": (folder / "model.safetensors").unlink()
    elif how == "no tokenizer": [p.unlink() for p in folder.glob("tokenizer*")]
    elif how == "half the weights": (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    elif how == "a config that is no JSON": (folder / "config.json").write_text("{")
    elif how == "a config that is a list": (folder / "config.json").write_text("[]")
    elif how == "a pickle": (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "another library": [(p.unlink()) for p in folder.iterdir()]; (folder / "model.joblib").write_bytes(b"\x80\x04")
    elif how == "an unknown architecture": (folder / "config.json").write_text('{"model_type": "spacy-textcat"}')
    elif how in ("corrupt ONNX", "empty ONNX"):
        (folder / "model.safetensors").unlink()
        (folder / "model.onnx").write_bytes(b"\x00" * 500 if how == "corrupt ONNX" else b"")
    return folder


MODELS = ["missing", "a file", "empty", "no weights", "no tokenizer", "half the weights", "a config that is no JSON", "a config that is a list", "a pickle", "another library", "an unknown architecture", "corrupt ONNX", "empty ONNX"]


@pytest.mark.parametrize("how", MODELS)
def test_models(model, tmp_path, how):
    with pytest.raises(RunError) as e:
        Predictor.load(damaged(model, tmp_path, how), "cpu")
    assert str(tmp_path / "model") in str(e.value)


def test_commands_tell_of_a_bad_model_in_a_sentence(model, tmp_path):
    folder = damaged(model, tmp_path, "corrupt ONNX")
    (tmp_path / "in").mkdir()
    pd.DataFrame(dict(text=["a film"])).to_parquet(tmp_path / "in" / "a.parquet")
    for args in (["predict", "a film"], ["serve", "--port", 0], ["score", "--input", tmp_path / "in", "--out", tmp_path / "out"]):
        done = command(*args, "--model", folder)
        assert done.returncode == 1 and str(folder) in done.stderr.decode() and b"Traceback" not in done.stderr, done.stderr


def test_server(model, right):
    with Server(model) as server:
        for kind, (text, refusal) in TEXTS.items():
            body = json.dumps({"texts": text}, allow_nan=True)
            answer = httpx.post(f"{server.url}/predict", content=body, headers={"content-type": "application/json"}, timeout=60)
            if kind == "a lone surrogate": assert answer.status_code == 422 and "unicode" in answer.text # JSON's own rule
            elif refusal is None:
                assert answer.status_code == 200 and answer.json()["predictions"][0]["label"] == right[kind], (kind, answer.text)
            elif kind == "a list": assert answer.status_code == 200 # of one text
            else: assert answer.status_code in (400, 413, 422) and answer.json()["detail"], (kind, answer.text)
        bodies = {"nothing": b"", "no JSON": b"{", "a number": b"7", "another field": b'{"text": "a film"}', "a further field": b'{"texts": "a film", "model": "x"}', "no texts": b'{"texts": []}',
                  "a list of lists": b'{"texts": [["a film"]]}', "too many": json.dumps({"texts": ["a film"] * 5000}).encode(), "not UTF-8": b'{"texts": "caf\xe9"}', "a wish that is none": b'{"texts": "a film", "explain": "maybe so"}'}
        for kind, body in bodies.items():
            answer = httpx.post(f"{server.url}/predict", content=body, headers={"content-type": "application/json"}, timeout=60)
            assert answer.status_code in (400, 413, 422) and answer.json()["detail"], (kind, answer.status_code, answer.text[:300])
        assert httpx.get(f"{server.url}/predict").status_code == 405 and httpx.get(f"{server.url}/nothing").status_code == 404
        assert httpx.post(f"{server.url}/predict", json={"texts": "a film"}).status_code == 200
        out = server.stop()
    assert "Traceback" not in out


def test_ray(model, right, tmp_path):
    (tmp_path / "in").mkdir()
    strings = {k: None if t is None else t.encode("utf-8", "replace").decode() for k, (t, _) in TEXTS.items() if t is None or isinstance(t, str)}
    pd.DataFrame(dict(kind=strings.keys(), text=strings.values())).to_parquet(tmp_path / "in" / "a.parquet")
    pd.DataFrame(dict(kind=["a number"], text=[42])).to_parquet(tmp_path / "in" / "b.parquet")
    pd.DataFrame(dict(kind=["bytes"], text=[b"caf\xe9"])).to_parquet(tmp_path / "in" / "c.parquet")
    done = command("score", "--model", model, "--input", tmp_path / "in", "--out", tmp_path / "out", "--engine", "ray", "--workers", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    answers = pq.read_table(tmp_path / "out" / "a.parquet").to_pandas()
    assert dict(zip(answers.kind, answers.prediction)) == {k: v for k, v in right.items() if "surrogate" not in k} | {k: p for k, p in zip(answers.kind, answers.prediction) if "surrogate" in k}
    rejected = {p.name.split(".")[0]: [json.loads(line) for line in open(p)] for p in (tmp_path / "out").glob("*.rejected.jsonl")}
    assert len(answers) + len(rejected["a"]) == len(strings) and all(r["reason"] for r in rejected["a"])
    assert "of type int" in rejected["b"][0]["reason"] and "of type bytes" in rejected["c"][0]["reason"]


def test_ray_folders(model, tmp_path):
    from imdb_sentiment.scale import score_folder
    (tmp_path / "empty").mkdir()
    (tmp_path / "column").mkdir()
    pd.DataFrame(dict(review=["a film"])).to_parquet(tmp_path / "column" / "a.parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1")
    for name in ("none", "empty", "column", "broken"):
        with pytest.raises((InputError, RunError)):
            score_folder(str(model), tmp_path / name, tmp_path / "out", engine="ray")
        assert not (tmp_path / "out").exists()


def test_at_least_forty_kinds():
    assert len(TEXTS) + len(FILES) + len(MODELS) >= 40
