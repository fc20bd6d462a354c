"""A model for stars gives the stars computed here without the library, at every interface."""

import json

import httpx
import numpy as np
import pandas as pd
import pytest
from tools import Server, command, failed_politely, opinionated_model, probabilities_by_hand

from imdb_sentiment.config import Config, SettingError, make_config
from imdb_sentiment.data import load_reviews
from imdb_sentiment.export import export_form
from imdb_sentiment.files import predict_file
from imdb_sentiment.prediction import InputError, Predictor
from imdb_sentiment.labels import DataError

NAMES = ("1", "2", "4", "5")  # nobody gave three stars
VALUES = np.array([1, 2, 4, 5])
TEXTS = ["a wonderful film", "a dull film", "wonderful, dull and weak", "the plot", "😀 dull"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stars") / "model"
    return opinionated_model(folder, NAMES, task="stars")


@pytest.fixture(scope="module")
def expected(model):
    "Expected stars of each text and their range, one text and one star at a time."
    rows = []
    for probabilities in probabilities_by_hand(model, TEXTS):
        stars = sum(p * v for p, v in zip(probabilities, VALUES))
        low = next(v for i, v in enumerate(VALUES) if sum(probabilities[: i + 1]) > 0.1)
        high = next(v for i, v in enumerate(VALUES) if sum(probabilities[: i + 1]) > 0.9)
        rows.append(dict(stars=stars, stars_low=low, stars_high=high))
    return rows


def same(found, expected, bound=2e-4):
    "Whether the stars of a prediction are the expected ones."
    close = abs(found["stars"] - expected["stars"]) < bound
    return close and all(found[k] == expected[k] for k in ("stars_low", "stars_high"))


def test_the_model_tells_good_from_bad(expected):
    assert expected[0]["stars"] > 4 > 2 > expected[1]["stars"]


def test_one_text_and_a_table(model, expected):
    predictor = Predictor.load(model)
    assert all(same(vars(p), e) for p, e in zip(predictor(TEXTS), expected))
    table = predictor(pd.DataFrame(dict(text=TEXTS)))
    assert all(same(row, e) for row, e in zip(table.to_dict("records"), expected))
    with pytest.raises(InputError, match="column 'stars' already"):
        predictor(pd.DataFrame(dict(text=TEXTS, stars=1)))


def test_files(model, expected, tmp_path):
    pd.DataFrame(dict(text=TEXTS)).to_csv(tmp_path / "in.csv", index=False)
    predict_file(Predictor.load(model), tmp_path / "in.csv", tmp_path / "out.csv")
    rows = pd.read_csv(tmp_path / "out.csv").to_dict("records")
    assert all(same(row, e) for row, e in zip(rows, expected))
    assert "probability_4" in rows[0]


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_exported_forms(model, expected, tmp_path, form):
    export_form(model, tmp_path / form, form)
    predictions = Predictor.load(tmp_path / form)(TEXTS)
    assert all(same(vars(p), e, 0.01) for p, e in zip(predictions, expected))  # OpenVINO: bf16


def test_shell_and_server(model, expected):
    done = command("predict", "--model", model, TEXTS[0])
    e = expected[0]
    said = f"({e['stars']:.1f} expected, {e['stars_low']} to {e['stars_high']}"
    assert said in done.stdout, done.stdout
    with Server(model) as server:
        assert httpx.get(f"{server.url}/health").json()["task"] == "stars"
        found = httpx.post(f"{server.url}/predict", json=dict(texts=TEXTS)).json()["predictions"]
    assert all(same(p, e) for p, e in zip(found, expected))


def test_a_model_for_classes_says_nothing_of_stars(tmp_path):
    predictor = Predictor.load(opinionated_model(tmp_path / "model"))
    assert predictor("dull").stars is None
    assert "stars" not in predictor(pd.DataFrame(dict(text=["dull"])))


def table_of(path, labels):
    rows = [
        dict(text=f"The order number {i} came on day {i % 9}.", score=s)
        for i, s in enumerate(labels)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Config(data=str(path), label_column="score", task="stars", max_bad_rows=0.05)


GOOD = [1, 2, 3, 4, 5] * 40


@pytest.mark.parametrize(
    "labels, message",
    [
        (["good", "bad"] * 50, "labels that are whole numbers"),
        ([4.5, 3.5] * 50, "labels that are whole numbers"),
        ([*GOOD, 11], "rows with the label '11' are one text"),
        ([*GOOD, *[None] * 30], "rows cannot be used"),
        ([*GOOD, *["five"] * 30], "rows cannot be used"),
        ([5] * 100, "the only label in 100 rows is '5'"),
    ],
)
def test_labels_that_are_no_stars_are_an_error(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        load_reviews(table_of(tmp_path / "rows.jsonl", labels))


def test_a_few_bad_rows_are_left_out_and_named(tmp_path):
    cfg = table_of(tmp_path / "rows.jsonl", [*GOOD, 2.5, -1, "3 of 5", [4]])
    reviews, names, [table] = load_reviews(cfg)
    assert names == ("1", "2", "3", "4", "5")
    assert len(reviews) == len(GOOD)
    assert [bad["row"] for bad in table.bad] == [201, 202, 203, 204]


def test_a_misspelt_task_is_an_error():
    with pytest.raises(SettingError, match="choose one of classes, stars"):
        make_config(task="star")
    done = command("report", "--set", "task=star")
    failed_politely(done, "choose one of classes, stars")
