"Bad input, and a disk that is full, where the notebooks' own asserts do not reach."

import json
import sys
from contextlib import contextmanager

import pytest
import torch
from tools import ROOT, command, failed_politely

from imdb_sentiment.config import Config
from imdb_sentiment.runs import RunError, open_run, write_json
from imdb_sentiment.labels import DataError
from imdb_sentiment.data import load_reviews
from imdb_sentiment.files import write_part
from imdb_sentiment.checkpoints import State, load_checkpoint, save_checkpoint, write_tensors


@contextmanager
def full_disk(after):
    "No file can grow beyond so many bytes: the system writes that much of it and then refuses, as a full disk does."
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_no_half_file(tmp_path):
    path = tmp_path / "kept.json"
    write_json(path, {"a": 1})
    with full_disk(1000), pytest.raises(OSError):
        write_json(path, {"a": "2" * 5000})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]


def test_full_disk_leaves_no_half_part(tmp_path):
    rows = [dict(text="a film", prediction="pos")] * 200
    with full_disk(1000), pytest.raises(OSError):
        write_part(tmp_path / "000000000.jsonl", rows, [], "jsonl")
    assert not (tmp_path / "000000000.jsonl").exists()


def test_full_disk_leaves_the_last_checkpoint(tmp_path):
    weights = dict(model=dict(w=torch.arange(5000.0)))
    save_checkpoint(tmp_path, weights, State("mine", step=1))
    with full_disk(10_000), pytest.raises(RunError, match="step 2 could not be written"):
        save_checkpoint(tmp_path, weights, State("mine", step=2))
    assert len(list(tmp_path.iterdir())) == 1
    state, tensors = load_checkpoint(tmp_path, "mine")
    assert state.step == 1
    assert torch.equal(tensors["model"]["w"], weights["model"]["w"])


def test_disk_that_keeps_something_else(tmp_path, monkeypatch):
    "What was written is read back before an older checkpoint goes."
    module = sys.modules[write_tensors.__module__]
    save = module.save_file
    monkeypatch.setattr(
        module,
        "save_file",
        lambda tensors, path: save({k: v + 1 for k, v in tensors.items()}, path),
    )
    with pytest.raises(OSError, match="reads back differently"):
        write_tensors(tmp_path / "model.safetensors", dict(w=torch.arange(3.0)))


def test_full_disk_refuses_a_run_which_can_be_opened_later(tmp_path):
    with full_disk(100), pytest.raises(RunError, match="Cannot write to the run folder"):
        open_run(Config(), tmp_path / "run")
    open_run(Config(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == "embedded"


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere.tar.gz", "~/missing.csv"])
def test_missing_source(source):
    with pytest.raises(DataError, match="no such file or folder") as e:
        load_reviews(Config(data=source))
    assert source in str(e.value)


MISTAKES = [
    (["--set", "learningrate=1"], "Did you mean 'learning_rate'"),
    (["--set", "epochs=many"], "expected a whole number"),
    (["--set", "dropout=1.5"], "between 0 and 0.99"),
    (["--preset", "demos"], "Did you mean 'demo'"),
    (["--name", "a/b"], "names a folder"),
]


@pytest.mark.parametrize("args, said", MISTAKES)
def test_command_line_mistakes_are_one_sentence(args, said, tmp_path):
    done = command("report", *args, "--run-dir", tmp_path / "run", cwd=ROOT)
    failed_politely(done, said)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()
