"""A model for several labels gives the sets computed here without the library, at every interface."""

import json

import httpx
import numpy as np
import pandas as pd
import pytest
from tools import Server, command, failed_politely, opinionated_model, probabilities_by_hand

from imdb_sentiment.config import Config
from imdb_sentiment.data import load_reviews
from imdb_sentiment.export import export_form
from imdb_sentiment.files import predict_file
from imdb_sentiment.labels import DataError
from imdb_sentiment.model import read_decisions, write_decisions
from imdb_sentiment.prediction import Predictor

NAMES = ("complaint", "so-so", "praise")
THRESHOLDS = (0.2, 0.6, 0.4)
TEXTS = ["a wonderful film", "a dull film", "wonderful, dull and weak", "the plot", "😀 dull"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several") / "model"
    opinionated_model(folder, NAMES, task="multilabel")
    write_decisions(
        folder, **read_decisions(folder), label_thresholds=THRESHOLDS, abstain_below=0.5
    )
    return folder


@pytest.fixture(scope="module")
def expected(model):
    "The labels of each text and the probability that all answers are correct, one at a time."
    rows = []
    for probabilities in probabilities_by_hand(model, TEXTS):
        labels, together = [], 1.0
        for name, p, threshold in zip(NAMES, probabilities, THRESHOLDS):
            if p >= threshold:
                labels.append(name)
            together *= p if p >= threshold else 1 - p
        rows.append(dict(labels=labels, probability=together, probabilities=probabilities))
    return rows


def same(found, expected, bound=2e-4):
    "Whether a prediction is the expected one."
    close = abs(found["probability"] - expected["probability"]) < bound
    each = np.abs(np.subtract([*found["probabilities"].values()], expected["probabilities"])).max()
    labels = list(found["labels"]) == expected["labels"]
    joined = found["label"] == ";".join(expected["labels"])
    return close and each < bound and labels and joined


def test_sets_differ_between_texts(expected):
    assert len({tuple(e["labels"]) for e in expected}) > 1


def test_one_text_and_a_table(model, expected):
    predictor = Predictor.load(model)
    assert all(same(vars(p), e) for p, e in zip(predictor(TEXTS), expected))
    table = predictor(pd.DataFrame(dict(text=TEXTS)))
    assert table.prediction.tolist() == [";".join(e["labels"]) for e in expected]
    assert table.abstains.tolist() == [bool(e["probability"] < 0.5) for e in expected]


def test_a_text_without_labels_is_an_answer(model):
    strict = Predictor.load(model, thresholds=(0.999, 0.999, 0.999))
    prediction = strict("a wonderful film")
    assert (prediction.label, prediction.labels) == ("", ())
    table = strict(pd.DataFrame(dict(text=TEXTS)))
    assert table.prediction.tolist() == [""] * len(TEXTS)


def test_files(model, expected, tmp_path):
    pd.DataFrame(dict(text=TEXTS)).to_csv(tmp_path / "in.csv", index=False)
    predict_file(Predictor.load(model), tmp_path / "in.csv", tmp_path / "out.csv")
    rows = pd.read_csv(tmp_path / "out.csv", keep_default_na=False).to_dict("records")
    assert [row["prediction"] for row in rows] == [";".join(e["labels"]) for e in expected]
    found = [[row[f"probability_{name}"] for name in NAMES] for row in rows]
    assert np.abs(np.subtract(found, [e["probabilities"] for e in expected])).max() < 2e-4


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_exported_forms(model, expected, tmp_path, form):
    export_form(model, tmp_path / form, form)
    predictions = Predictor.load(tmp_path / form)(TEXTS)
    assert all(same(vars(p), e, 0.01) for p, e in zip(predictions, expected))  # OpenVINO: bf16


def test_transformers_reads_the_exported_model(model, expected, tmp_path):
    from transformers import pipeline

    export_form(model, tmp_path / "hf", "huggingface")
    pipe = pipeline("text-classification", str(tmp_path / "hf"), trust_remote_code=True, top_k=None)
    for text, e in zip(TEXTS, expected):
        found = {row["label"]: row["score"] for row in pipe([text])[0]}
        each = [found[name] for name in NAMES]
        assert np.abs(np.subtract(each, e["probabilities"])).max() < 1e-4


def test_shell_and_server(model, expected):
    done = command("predict", "--model", model, TEXTS[0])
    e = expected[0]
    said = f"{';'.join(e['labels']) or 'none'} {e['probability']:.1%}"
    assert said in done.stdout, done.stdout
    with Server(model) as server:
        assert httpx.get(f"{server.url}/health").json()["task"] == "multilabel"
        found = httpx.post(f"{server.url}/predict", json=dict(texts=TEXTS)).json()["predictions"]
        ask = dict(texts=TEXTS[0], explain=True)
        why = httpx.post(f"{server.url}/predict", json=ask).json()["predictions"][0]["explanation"]
    assert all(same(p, e) for p, e in zip(found, expected))
    assert why["label"] == NAMES[int(np.argmax(expected[0]["probabilities"]))]


def test_the_explanation_is_that_of_its_label_alone(model):
    predictor = Predictor.load(model)
    text = "a wonderful film"
    why = predictor.explain(text)
    k = NAMES.index(why["label"])
    log_odds = lambda rows: np.log(rows[:, k] / (1 - rows[:, k]))
    whole, without = probabilities_by_hand(model, [text, "a film"])
    (piece,) = [p for p in why["pieces"] if text[p["start"] : p["end"]] == "wonderful"]
    fall = log_odds(whole[None])[0] - log_odds(without[None])[0]
    assert piece["weight"] == pytest.approx(fall, abs=1e-3)


def table_of(path, labels, **settings):
    rows = [
        dict(text=f"The order number {i} came on day {i % 9}.", tags=tags)
        for i, tags in enumerate(labels)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    how = dict(label_column="tags", task="multilabel", max_bad_rows=0.05)
    return Config(data=str(path), **{**how, **settings})


GOOD = [["late"], [], ["late", "broken"], ["broken"]] * 30


@pytest.mark.parametrize(
    "labels, message",
    [
        ([[]] * 100, "none of the 100 rows has a label"),
        ([["late"], []] * 50, "the only label in 100 rows is 'late'"),
        ([*GOOD, *[None] * 30], "rows cannot be used"),
        ([*GOOD, *[[["late"]]] * 30], "rows cannot be used"),
        ([*GOOD, *[["a;b"]] * 30], "rows cannot be used"),
        ([[f"tag {i % 100}"] for i in range(3000)], "at most 60 labels, and there are 100"),
        ([*GOOD, ["late", "micro"], ["micro"]], "Rename it"),
    ],
)
def test_labels_that_are_no_sets_are_an_error(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        load_reviews(table_of(tmp_path / "rows.jsonl", labels))


def test_a_few_bad_rows_are_left_out_and_named(tmp_path):
    more = [None, {"late": 1}, [3.5, None], "late; broken"]
    reviews, names, [table] = load_reviews(
        table_of(tmp_path / "rows.jsonl", [*GOOD, *more], label_names=("broken", "late"))
    )
    assert names == ("broken", "late")
    assert reviews.label.tolist()[-1] == 3  # the last of them is another way to write it
    assert [bad["row"] for bad in table.bad] == [121, 122, 123]


def test_one_label_a_text_refuses_a_list(tmp_path):
    with pytest.raises(DataError, match="the label is a list; several labels for a text need"):
        load_reviews(table_of(tmp_path / "rows.jsonl", GOOD, task="classes"))


def test_a_missing_column_is_one_sentence(tmp_path):
    table_of(tmp_path / "rows.jsonl", GOOD)
    settings = [f"data={tmp_path / 'rows.jsonl'}", "task=multilabel", "label_column=late,broken"]
    done = command("report", *(word for s in settings for word in ("--set", s)))
    failed_politely(done, "no column 'late'")
