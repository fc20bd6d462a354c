"""`imdb-sentiment pretrain` from the outside: an encoder that can be used, no test text, one sentence for bad input."""

import json

import pandas as pd
import pytest
from tools import command, failed_politely
from transformers import AutoModel, AutoTokenizer

from imdb_sentiment.config import Config
from imdb_sentiment.data import load_reviews

SMALL = ("--set", "limit=200", "--set", "max_length=32", "--set", "batch_size=16")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    "What the command says, and its folder; a test text is offered in capitals."
    folder = tmp_path_factory.mktemp("pretrained")
    reviews, _, _ = load_reviews(Config(limit=200))
    test = reviews.text[reviews.part == "test"].iloc[0].upper()
    more = folder / "more.csv"
    pd.DataFrame(dict(text=["An unlabelled text.", test, None])).to_csv(more, index=False)
    done = command("pretrain", *SMALL, "--texts", more, "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return done, folder / "run"


def test_the_command_says_what_it_read_and_what_came_of_it(pretrained):
    done, run = pretrained
    assert "1 test texts are left out" in done.stderr
    assert "of the hidden tokens of held-out texts (before:" in done.stdout
    assert f"backbone={run / 'encoder'}" in done.stdout
    summary = json.loads((run / "pretraining.json").read_text())
    assert summary["left_out"] == dict(unusable=1, test=1, repeats=0)
    assert summary["epochs"][-1]["held_out_loss"] < summary["before"]["loss"]


def test_the_encoder_is_one_for_everybody(pretrained, tmp_path):
    encoder = AutoModel.from_pretrained(pretrained[1] / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(pretrained[1] / "encoder")
    assert encoder(**tokenizer("A film.", return_tensors="pt")).last_hidden_state.shape[1] == 5
    backbone = ("--set", f"backbone={pretrained[1] / 'encoder'}")
    done = command("train", *SMALL, "--set", "epochs=1", *backbone, "--run-dir", tmp_path / "run")
    assert "Validation accuracy" in done.stdout, done.stderr


def test_the_same_command_again_changes_nothing(pretrained):
    _, run = pretrained
    before = (run / "encoder" / "model.safetensors").read_bytes()
    more = run.parent / "more.csv"
    done = command("pretrain", *SMALL, "--texts", more, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert (run / "encoder" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "options, said",
    [
        (("--texts", "missing.csv"), "missing.csv"),
        (("--set", "limit=20"), "texts are too few to learn from"),
        (("--set", "backbone=nowhere/at-all"), "nowhere/at-all"),
        (("--set", "max_length=4"), "must be between 8"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, options, said):
    failed_politely(command("pretrain", *options, "--run-dir", tmp_path / "run"), said)


def test_a_table_without_the_text_column_is_one_sentence(tmp_path):
    pd.DataFrame(dict(review=["A text."])).to_csv(tmp_path / "more.csv", index=False)
    done = command("pretrain", "--texts", tmp_path / "more.csv", "--run-dir", tmp_path / "run")
    failed_politely(done, "has no column 'text'")
