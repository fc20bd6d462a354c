"""Bad input at each interface: the function, the command, the server and Ray. Every row gets the prediction that was
computed without this library, or a reason; no interface shows a traceback."""

import gzip
import json
import re
import math
import shutil
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from tools import (
    Server,
    command,
    failed_politely,
    fresh_command,
    opinionated_model,
    probabilities_by_hand,
)

from imdb_sentiment.runs import RunError
from imdb_sentiment.files import predict_file
from imdb_sentiment.prediction import InputError, Predictor
from imdb_sentiment.scale import score_folder

# What somebody may take for a review, and what the refusal says; None where there is a prediction.
TEXTS = {
    "a review": ("a wonderful film", None),
    "another review": ("a dull film", None),
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
    "dull at first": ("a dull film " * 20 + "wonderful and great " * 20, None),
    "dull at the end": ("wonderful and great " * 20 + "a dull film " * 20, None),
    "one word of 50,000 letters": ("a" * 50_000, None),
    "a null byte inside": ("a film\x00 wonderful", None),
    "HTML line breaks": ("a wonderful<br /><br>dull<br/>film", None),
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
PREDICTED = [kind for kind, (_, refusal) in TEXTS.items() if refusal is None]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opinionated_model(tmp_path_factory.mktemp("doors") / "model", truncation="head+tail")


def by_hand(model, texts):
    "The probability of `good` for each text, as it should be read: halves of a pair joined, line breaks as spaces."
    whole = [t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts]
    for mark in ("<br />", "<br/>", "<br>"):
        whole = [t.replace(mark, " ") for t in whole]
    return probabilities_by_hand(model, whole)[:, 1]


@pytest.fixture(scope="module")
def right(model):
    "The probability of `good` for each text that has a prediction."
    return dict(zip(PREDICTED, by_hand(model, [TEXTS[k][0] for k in PREDICTED])))


def close(predictions, expected):
    "Assert for each kind of text that label and probability are the expected ones; `predictions` by kind."
    assert set(predictions) == set(expected)
    for kind, p in expected.items():
        label, probability = predictions[kind]
        assert probability == pytest.approx(max(p, 1 - p), abs=0.02), (
            kind
        )  # the library may compute in bf16
        if abs(p - 0.5) > 0.02:
            assert label == ("good" if p > 0.5 else "bad"), kind


def test_texts_have_predictions_that_differ(right):
    "Otherwise one that belongs to another text would not be noticed."
    assert min(right.values()) < 0.2
    assert max(right.values()) > 0.8
    assert len({round(p, 2) for p in right.values()}) > 12
    assert abs(right["dull at first"] - right["a review"]) > 0.05
    assert abs(right["a review"] - right["another review"]) > 0.5


@pytest.mark.parametrize("kind", TEXTS)
def test_function(model, right, kind):
    text, refusal = TEXTS[kind]
    predictor = Predictor.load(model, "cpu")
    if refusal is None:
        for found in (predictor(text), predictor(["a film", text, "wonderful"])[1]):
            close({kind: (found.label, found.probability)}, {kind: right[kind]})
    else:
        with pytest.raises(InputError, match=rf"^number 1 .*{refusal}"):
            predictor(["a film", text])


@pytest.mark.parametrize(
    "value", [b"a film", np.float32(1), pd.Timestamp("2026-01-01"), object(), 1 + 2j]
)
def test_function_other_types(model, value):
    with pytest.raises(InputError, match=f"of type {type(value).__name__}"):
        Predictor.load(model, "cpu")([value])


LINES = [  # of JSON, and what the refusal says; None for a line that is no row
    (b"", None),
    (b"{", "not valid JSON"),
    (b"[1, 2]", "a list, not a JSON object"),
    (b'"a film"', "a str, not a JSON object"),
    (b'{"review": "a film"}', "there is no 'text'; the row has 'review'"),
    (b'{"text": "a film", "prediction": 1}', "'prediction' already"),
    (b'{"text": "caf\xe9"}', "not UTF-8: byte 0xe9"),
]


def test_command_jsonl(model, right, tmp_path):
    whole = lambda text: not re.search("[\ud800-\udfff]", str(text))
    rows = [
        json.dumps(dict(kind=k, text=t), ensure_ascii=not whole(t)).encode()
        for k, (t, _) in TEXTS.items()
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*rows, *(line for line, _ in LINES)]) + b"\n")
    files = ["--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl"]
    done = command("predict", "--model", model, *files, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in open(tmp_path / "out.jsonl")]
    close({r["kind"]: (r["prediction"], r["probability"]) for r in found}, right)
    rejected = [json.loads(line) for line in open(tmp_path / "out.jsonl.rejected.jsonl")]
    refusals = [r for _, r in TEXTS.values()] + [r for _, r in LINES]
    expected = {line: reason for line, reason in enumerate(refusals, 1) if reason}
    assert [r["line"] for r in rejected] == list(expected)
    for row in rejected:
        assert expected[row["line"]] in row["reason"]


CSV_LINES = [  # below the rows with the columns `kind` and `text`, and what the refusal says
    (b"too short", "fields in the row: 1, in the header: 2"),
    (b"too,many,cells", "fields in the row: 3, in the header: 2"),
    (b"latin,caf\xe9", "not UTF-8: byte 0xe9"),
]


def test_command_csv(model, right, tmp_path):
    strings = {
        k: t
        for k, (t, _) in TEXTS.items()
        if isinstance(t, str) and "\x00" not in t and "\ud83d" not in t
    }
    frame = pd.DataFrame(dict(kind=strings.keys(), text=strings.values()))
    frame.to_csv(tmp_path / "in.csv", index=False)
    with open(tmp_path / "in.csv", "ab") as f:
        f.write(b"\n".join(line for line, _ in CSV_LINES) + b"\n")
    files = ["--input", tmp_path / "in.csv", "--out", tmp_path / "out.csv"]
    done = command("predict", "--model", model, *files, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    predictions = {r.kind: (r.prediction, r.probability) for r in found.itertuples()}
    close(predictions, {k: right[k] for k in strings if k in right})
    rejected = [json.loads(line) for line in open(tmp_path / "out.csv.rejected.jsonl")]
    expected = [TEXTS[k][1] for k in strings if TEXTS[k][1]] + [reason for _, reason in CSV_LINES]
    assert len(rejected) == len(expected)
    for row, reason in zip(rejected, expected):
        assert reason in row["reason"]


FILES = {  # content, and what the refusal says
    "in.csv": (b"", "the file is empty"),
    "column.csv": (b"review,label\na film,1\n", "no column 'text'"),
    "taken.csv": (b"text,prediction\na film,1\n", "'prediction' already"),
    "twice.csv": (b"text,text\na film,1\n", "a column twice: 'text'"),
    "cyrillic.csv": ("text\nхороший фильм\n".encode("cp1251"), "not UTF-8"),
    "packed.csv": (gzip.compress(b"text\na film\n"), "not UTF-8"),
    "broken.parquet": (b"PAR1 and then nothing", "not a parquet file"),
    "empty.parquet": (b"", "not a parquet file"),
    "book.xls": (b"\xd0\xcf\x11\xe0", "known endings are"),
    "no-ending": (b"a film\n", "known endings are"),
}


@pytest.mark.parametrize("name", FILES)
def test_command_files(model, tmp_path, name):
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        predict_file(
            Predictor.load(model, "cpu"), tmp_path / name, tmp_path / ("out" + Path(name).suffix)
        )
    assert [p.name for p in tmp_path.iterdir()] == [name]


PLACES = [  # options besides --model, and what the refusal says
    (["--input", "none.csv", "--out", "o.csv"], "there is no file"),
    (["--input", ".", "--out", "o.csv"], "known endings are"),
    (["--input", "in.txt", "--out", "there.jsonl"], "exists already"),
    (["--input", "in.txt"], "belong together"),
]


@pytest.mark.parametrize("options, said", PLACES)
def test_command_places(model, tmp_path, options, said):
    (tmp_path / "in.txt").write_text("a film\n")
    (tmp_path / "there.jsonl").write_text("mine")
    done = command("predict", "--model", model, "--device", "cpu", *options, cwd=tmp_path)
    failed_politely(done, said)
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "there.jsonl"]


def without(pattern):
    def spoil(folder):
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def holding(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def as_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def of_another_library(folder):
    without("*")(folder)
    holding("model.joblib", b"\x80\x04")(folder)


def as_onnx(content):
    def spoil(folder):
        without("model.safetensors")(folder)
        holding("model.onnx", content)(folder)

    return spoil


def as_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("weights")


MODELS = {  # what is done to the folder of a model, and what the refusal says
    "missing": (shutil.rmtree, "holds no model"),
    "a file": (as_a_file, "holds no model"),
    "empty": (without("*"), "holds no model"),
    "no weights": (without("model.safetensors"), "model.safetensors"),
    "no tokenizer": (without("tokenizer*"), "tokenizer"),
    "half the weights": (cut_short, "not a complete TransformerClassifier"),
    "a config that is no JSON": (holding("config.json", b"{"), "config.json is damaged"),
    "a config that is a list": (holding("config.json", b"[]"), "config.json is damaged"),
    "a pickle": (as_a_pickle, "model.safetensors"),
    "another library": (of_another_library, "holds no model"),
    "an unknown architecture": (
        holding("config.json", b'{"model_type": "spacy"}'),
        "not a usable",
    ),
    "corrupt ONNX": (as_onnx(b"\x00" * 500), "model.onnx"),
    "empty ONNX": (as_onnx(b""), "model.onnx"),
}


@pytest.mark.parametrize("how", MODELS)
def test_models(model, tmp_path, how):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    spoil, said = MODELS[how]
    spoil(folder)
    with pytest.raises(RunError) as e:
        Predictor.load(folder, "cpu")
    assert str(folder) in str(e.value)
    assert said in str(e.value)


COMMANDS = [
    ["predict", "a film"],
    ["serve", "--port", 0],
    ["score", "--input", "in", "--out", "out"],
]


@pytest.mark.parametrize("args", COMMANDS, ids=lambda a: a[0])
def test_commands_tell_of_a_bad_model_in_a_sentence(model, tmp_path, args):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    as_onnx(b"\x00" * 500)(folder)
    (tmp_path / "in").mkdir()
    pd.DataFrame(dict(text=["a film"])).to_parquet(tmp_path / "in" / "a.parquet")
    done = command(*args, "--model", folder, cwd=tmp_path)
    failed_politely(done, str(folder))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def server(model):
    with Server(model) as server:
        yield server
        assert "Traceback" not in server.stop()


def post(server, body):
    "The status of /predict for this body, and what it answers."
    options = dict(content=body, headers={"content-type": "application/json"}, timeout=60)
    response = httpx.post(f"{server.url}/predict", **options)
    return response.status_code, response.json()


# Where JSON and HTTP have rules of their own: the status, and what the detail says.
BY_HTTP = {
    "10 MB": (413, "larger than"),
    "a lone surrogate": (422, "unicode"),
    "not a number": (422, "texts"),
}


@pytest.mark.parametrize("kind", [k for k in TEXTS if k != "a list"])
def test_server_texts(server, right, kind):
    status, found = post(server, json.dumps({"texts": TEXTS[kind][0]}))
    if kind in right and kind not in BY_HTTP:
        assert status == 200, found
        (answer,) = found["predictions"]
        close({kind: (answer["label"], answer["probability"])}, {kind: right[kind]})
    else:
        expected, said = BY_HTTP.get(kind, (422, "texts"))
        assert status == expected, found
        assert said in found["detail"]


BODIES = {  # the status, and what the detail says
    "nothing": (b"", 422, "required"),
    "no JSON": (b"{", 422, "JSON"),
    "a number": (b"7", 422, "dictionary"),
    "another field": (b'{"text": "a film"}', 422, "texts"),
    "a further field": (b'{"texts": "a film", "model": "x"}', 422, "model"),
    "no texts": (b'{"texts": []}', 422, "at least 1"),
    "a list of lists": (b'{"texts": [["a film"]]}', 422, "string"),
    "too many": (json.dumps({"texts": ["a film"] * 5000}).encode(), 422, "at most 64"),
    "not UTF-8": (b'{"texts": "caf\xe9"}', 400, "body"),
    "a wish that is none": (b'{"texts": "a film", "explain": "maybe so"}', 422, "explain"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_server_bodies(server, kind):
    body, expected, said = BODIES[kind]
    status, found = post(server, body)
    assert status == expected, found
    assert said in found["detail"]


def test_server(server, right):
    "A list of texts, addresses and methods that there are not, and that it still works afterwards."
    assert httpx.get(f"{server.url}/predict").status_code == 405
    assert httpx.get(f"{server.url}/nothing").status_code == 404
    kinds = ["a review", "another review", "dull at the end"]
    status, found = post(server, json.dumps({"texts": [TEXTS[k][0] for k in kinds]}))
    assert status == 200
    answers = [(a["label"], a["probability"]) for a in found["predictions"]]
    close(dict(zip(kinds, answers)), {k: right[k] for k in kinds})


def test_ray(model, tmp_path):
    (tmp_path / "in").mkdir()
    strings = {k: t for k, (t, _) in TEXTS.items() if t is None or isinstance(t, str)}
    strings = {k: t and t.encode("utf-8", "replace").decode() for k, t in strings.items()}
    pd.DataFrame(dict(kind=strings.keys(), text=strings.values())).to_parquet(
        tmp_path / "in" / "a.parquet"
    )
    pd.DataFrame(dict(kind=["a number"], text=[42])).to_parquet(tmp_path / "in" / "b.parquet")
    pd.DataFrame(dict(kind=["bytes"], text=[b"caf\xe9"])).to_parquet(tmp_path / "in" / "c.parquet")
    files = ["--input", tmp_path / "in", "--out", tmp_path / "out"]
    workers = ["--engine", "ray", "--workers", 2, "--device", "cpu"]
    done = fresh_command("score", "--model", model, *files, *workers)
    assert done.returncode == 0, done.stderr[-3000:]
    found = pd.read_parquet(tmp_path / "out" / "a.parquet")
    expected = by_hand(model, [strings[k] for k in PREDICTED])
    predictions = {r.kind: (r.prediction, r.probability) for r in found.itertuples()}
    close(predictions, dict(zip(PREDICTED, expected)))
    files = {p.name[0]: p for p in (tmp_path / "out").glob("*.rejected.jsonl")}
    rejected = {name: [json.loads(line) for line in open(p)] for name, p in files.items()}
    refusals = [TEXTS[k][1] for k in strings if TEXTS[k][1]]
    assert len(rejected["a"]) == len(refusals)
    for row, reason in zip(rejected["a"], refusals):
        assert reason in row["reason"]
    assert ["of type int" in r["reason"] for r in rejected["b"]] == [True]
    assert ["of type bytes" in r["reason"] for r in rejected["c"]] == [True]


FOLDERS = {  # what is put into it, and what the refusal says
    "none": (None, "there is no folder"),
    "empty": (lambda folder: None, "there is no .parquet file"),
    "column": (
        lambda folder: pd.DataFrame(dict(review=["a"])).to_parquet(folder / "a.parquet"),
        "no column 'text'",
    ),
    "broken": (lambda folder: (folder / "a.parquet").write_bytes(b"PAR1"), "not a parquet file"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_ray_folders(model, tmp_path, name):
    fill, said = FOLDERS[name]
    if fill:
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
    with pytest.raises(InputError, match=said):
        score_folder(str(model), tmp_path / name, tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()
