"""Several models on one split: an ensemble gives the sum computed here without it, and a student learns what its
teachers say and nothing that it will be asked about."""

import shutil

import httpx
import numpy as np
import pandas as pd
import pytest
from tools import Server, command, failed_politely

from imdb_sentiment.config import Config
from imdb_sentiment.data import load_split, prepare_split
from imdb_sentiment.decisions import decide
from imdb_sentiment.files import model_stamp, predict_file
from imdb_sentiment.prediction import Predictor
from imdb_sentiment.runs import open_run, read_json, write_json
from imdb_sentiment.training import train

SMALL = dict(limit=300, split_seed=1, epochs=2, warmup_steps=5, max_length=48, device="cpu")
TEXTS = ["A wonderful film with a moving ending.", "A dull, clumsy film.", "The plot " * 60]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two trained runs with one split and other seeds."
    folder, found = tmp_path_factory.mktemp("runs"), []
    for seed in (1, 2):
        cfg = Config(seed=seed, **SMALL)
        run = open_run(cfg, folder / f"seed-{seed}")
        prepare_split(cfg, run)
        train(cfg, run)
        decide(cfg, run)
        found.append(run)
    return found


@pytest.fixture(scope="module")
def duo(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("duo") / "model"
    done = command("ensemble", *runs, "--out", out, "--test")
    assert done.returncode == 0, done.stderr
    assert "test reviews:" in done.stdout
    return out


@pytest.fixture(scope="module")
def expected(runs, duo):
    "The probability that each text is positive, from the logits of both models."
    summary = read_json(duo / "ensemble.json")
    how = read_json(duo / "config.json")["long_texts"]
    each = [Predictor.load(run / "model", "cpu", long_texts=how).logits(TEXTS)[0] for run in runs]
    logits = sum(w * logits for w, logits in zip(summary["weights"], each))
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def test_runs_differ_and_share_their_split(runs):
    first, second = map(load_split, runs)
    assert first.equals(second)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] != weights[1]


def test_an_ensemble_at_every_interface(duo, expected, tmp_path):
    predictor = Predictor.load(duo, "cpu")
    found = [p.probabilities["pos"] for p in predictor(TEXTS)]
    assert found == pytest.approx(expected, abs=1e-5)
    pd.DataFrame(dict(text=TEXTS)).to_csv(tmp_path / "in.csv", index=False)
    predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.probability_pos.tolist() == pytest.approx(expected, abs=1e-5)
    with Server(duo) as server:
        body = dict(texts=TEXTS, explain=False)
        answers = httpx.post(f"{server.url}/predict", json=body).json()["predictions"]
    assert [a["probabilities"]["pos"] for a in answers] == pytest.approx(expected, abs=1e-5)
    assert predictor.explain(TEXTS[0])["pieces"]


def test_what_was_measured_is_what_was_written(runs, duo):
    summary, predictor = read_json(duo / "ensemble.json"), Predictor.load(duo, "cpu")
    reviews = load_split(runs[0])
    for part in ("val", "test"):
        rows = reviews[reviews.part == part]
        predicted = predictor.probabilities(rows.text.tolist()).argmax(1)
        accuracy = (predicted == rows.label).mean()
        assert summary[part]["ensemble"]["accuracy"] == pytest.approx(accuracy)


def test_another_member_is_another_model(duo, tmp_path):
    before = model_stamp(duo)
    member = duo / read_json(duo / "config.json")["members"][0] / "prediction.json"
    decided = read_json(member)
    write_json(member, {**decided, "logit_temperature": 9.0})
    assert model_stamp(duo) != before
    write_json(member, decided)
    assert model_stamp(duo) == before


def test_an_ensemble_is_not_exported(duo, tmp_path):
    done = command("export", "--model", duo, "--out", tmp_path / "hub")
    failed_politely(done, "is an ensemble")


def test_runs_on_other_splits_are_refused(runs, tmp_path):
    other, student = tmp_path / "other", tmp_path / "student"
    shutil.copytree(runs[1], other)
    reviews = load_split(other)
    swapped = reviews.part.replace(dict(train="test", test="train"))
    reviews.assign(part=swapped).to_parquet(other / "split.parquet")
    done = command("ensemble", runs[0], other, "--out", tmp_path / "model")
    failed_politely(done, "has another split")
    done = command("distill", "--teacher", other, "--run-dir", student, *options())
    failed_politely(done, "has learnt from")
    assert not (student / "config.json").exists()  # the corrected command is not refused


def options(**more):
    settings = {**SMALL, "seed": 1, **more}
    return [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]


def test_a_student_learns_from_both(runs, tmp_path):
    asked = load_split(runs[0]).query("part == 'test'").text.iloc[0]
    lines = [f"A wonderful film, number {i}." for i in range(30)] + [
        asked.upper().replace("\n", " ")
    ]
    (tmp_path / "more.txt").write_text("\n".join(lines), encoding="utf-8")
    student = tmp_path / "student"
    args = ("--teacher", runs[0], "--teacher", runs[1], "--unlabelled", tmp_path / "more.txt")
    done = command("distill", *args, "--run-dir", student, *options())
    assert done.returncode == 0, done.stderr
    assert "Left out: 1 that are in validation, calibration or test" in done.stdout
    soft = pd.read_parquet(student / "soft-labels.parquet")
    assert (soft.part == "unlabelled").sum() == 30
    texts = soft.text.tolist()
    each = [Predictor.load(run / "model", "cpu").logits(texts)[0] for run in runs]
    found = soft[["logit_neg", "logit_pos"]].to_numpy()
    assert np.abs(found - np.mean(each, axis=0)).max() < 1e-4
    training = read_json(student / "training.json")
    assert training["unlabelled"] == 30
    assert training["train_reviews"] == len(soft) - 30
    assert training["soft_labels"]["teachers"] == [run.name for run in runs]
    assert training["val_reviews"] == (load_split(student).part == "val").sum()
    again = command("distill", *args, "--run-dir", student, *options())
    assert again.returncode == 0, again.stderr
    assert read_json(student / "training.json") == training


@pytest.mark.parametrize(
    "more, said",
    [
        (dict(task="stars"), "needs task=classes"),
        (dict(class_weight="balanced"), "has none to count"),
        (dict(backbone="/none"), "no such folder"),
    ],
)
def test_a_student_that_cannot_learn_is_refused_at_once(runs, tmp_path, more, said):
    args = ("--teacher", runs[0], "--run-dir", tmp_path / "student")
    failed_politely(command("distill", *args, *options(**more)), said)
