"Reports on data of one's own: two labels and three, from a single file, and what is told when the file will not do."
import random
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from imdb_sentiment.config import Config, read_json
from imdb_sentiment.data import DataError, load_reviews
from imdb_sentiment.deployment import model_card
from imdb_sentiment.evaluation import answers_in, chances_in
from imdb_sentiment.inference import Predictor
from imdb_sentiment.pipeline import CHAPTER_LIST

ROOT = Path(__file__).parents[1]
SMALL = dict(epochs=3, resamples=20, warmup_steps=2, batch_size=16, learning_rate=0.005, max_length=32, text_column="note", label_column="verdict")
SAID = dict(poor=["broke at once", "cheap plastic", "sent it back", "a waste"], fine=["does its job", "okay for the price", "nothing special", "neither good nor bad"], good=["a delight", "works perfectly", "well made", "would buy again"])


def notes(labels, n, seed=0):
    "Made-up notes of a shop's customers: two remarks each on some product, one of ten under a wrong label."
    rng, rows = random.Random(seed), []
    for i in range(n):
        label = labels[i % len(labels)]
        said = rng.sample(SAID[label], 2)
        text = f"The {rng.choice(['kettle', 'lamp', 'headset', 'chair'])}, order {i}: {said[0]}. {said[1].capitalize()}, {rng.choice(['I think', 'my wife says', 'to be fair'])}."
        rows.append(dict(note=text, verdict=rng.choice(labels) if rng.random() < 0.1 else label))
    return pd.DataFrame(rows)


def project(folder):
    "The chapters without their examples and asserts, which other tests run: a project in which a report takes half the time."
    (folder / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", folder)
    for chapter in CHAPTER_LIST:
        notebook = nbformat.read(ROOT / "nbs" / f"{chapter.name}.ipynb", 4)
        cells = notebook.cells
        start = next(i for i, c in enumerate(cells) if c.source.startswith("## Run this chapter"))
        imports = next((c for c in cells if c.source.startswith("#| hide") and "On Colab" not in c.source), None)
        notebook.cells = [c for i, c in enumerate(cells) if i >= start or c is imports or c.source.startswith("#| export")]
        nbformat.write(notebook, folder / "nbs" / f"{chapter.name}.ipynb")


def report(table, path, **settings):
    "The command, as anybody would call it: metrics, folder of the report, run folder."
    table.to_json(path, orient="records", lines=True) if path.suffix == ".jsonl" else table.to_csv(path, index=False)
    project(path.parent)
    sets = [a for k, v in {**SMALL, **settings, "data": path}.items() for a in ("--set", f"{k}={v}")]
    done = subprocess.run([sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()", "report", "--name", "own", *sets], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"on the test part of {path.name}" in done.stdout
    folder = path.parent / "reports" / "own"
    return read_json(folder / "metrics.json"), folder, path.parent / "runs" / "own"


def words(page):
    "What a reader of the page sees."
    text = re.sub(r"<(style|head)\b.*?</\1>|<img[^>]*>", " ", page.read_text(encoding="utf-8"), flags=re.S)
    return unescape(re.sub(r"<[^>]+>", " ", text))


def is_about_the_shop(folder):
    for page in ("report.html", "when-to-believe-it.html"):
        text = words(folder / page)
        for word in ("IMDb", "film", "movie", "stars", "plot", "VADER:", "write-up"):
            assert not re.search(rf"\b{word}", text), (page, word, re.search(rf".{{60}}\b{word}.{{60}}", text, re.S))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return report(notes(("poor", "fine", "good"), 240), tmp_path_factory.mktemp("three") / "shop.csv")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return report(notes(("poor", "good"), 160), tmp_path_factory.mktemp("two") / "shop.jsonl", label_names="poor,good", epochs=1)


def test_three_labels_from_end_to_end(three):
    m, folder, run = three
    assert m["data_name"] == "shop.csv" and m["settings"]["label_names"] == ["fine", "good", "poor"] and m["settings"]["data"] == "shop.csv"
    assert [len(m["confusion"]), *map(len, m["confusion"])] == [3] * 4 and m["test_reviews"] == sum(map(sum, m["confusion"])) == 48
    assert {f"{s}_{n}" for s in ("precision", "recall", "f1") for n in ("fine", "good", "poor", "macro", "weighted")} < set(m)
    assert set(m["baselines"]) == {"majority", "tfidf"} and set(m["paired"]) == {"tfidf"} and "original_write_up" not in m
    assert m["accuracy"]["value"] > m["baselines"]["majority"]["accuracy"]["value"] + 0.1  # it learns
    assert 0 <= m["calibration"]["ece_after"]["value"] <= 1 and m["calibration"]["nll"] > 0 and 0 < m["roc_auc"] <= 1
    assert "false_positives" not in m["analysis"] and all(set(c) == {"label", "answer", "reviews", "share"} for c in m["analysis"]["confused"])
    assert set(m["analysis"]["slices"]) == {"By length in tokens", "By what was read", "By label"}
    assert m["robustness"]["pairs"] == {} and "negation inserted" not in m["robustness"]["perturbations"] and "neutral sentences appended" in m["robustness"]["perturbations"]
    assert m["explanations"]["comprehensiveness"] > m["explanations"]["random_comprehensiveness"]
    assert set(m["data"]["telling"]["words"]) == {"fine", "good", "poor"}


def test_three_labels_in_the_predictions(three):
    m, folder, _ = three
    rows = pd.read_parquet(folder / "predictions.parquet")
    assert list(rows) == ["id", "label", "rating", *(f"{kind}_{n}" for kind in ("prob", "logit") for n in ("fine", "good", "poor"))]
    assert abs(chances_in(rows).sum(1) - 1).max() < 1e-6 and rows.rating.isna().all()
    assert (answers_in(rows) == rows.label).mean() == pytest.approx(m["accuracy"]["value"])


def test_the_third_label_is_answered(three):
    _, _, run = three
    for model in (run / "model", run / "deployment" / "onnx"):
        if not model.exists():
            continue
        predictor = Predictor.load(model, device="cpu")
        answers = predictor(["The lamp, order 7: broke at once. Cheap plastic, I think.", "The lamp, order 8: works perfectly. Well made, I think."])
        assert predictor.labels == ("fine", "good", "poor") and [a.label for a in answers] == ["poor", "good"]
        assert set(answers[0].probabilities) == set(predictor.labels) and sum(answers[0].probabilities.values()) == pytest.approx(1)


def test_pages_and_card_speak_of_the_shop(three, two):
    for metrics, folder, _ in (three, two):
        is_about_the_shop(folder)
        assert not re.search(r"film|movie|IMDb|sentiment of|English", model_card(metrics, "shop").replace("imdb_sentiment", ""))
        assert metrics["data_name"] in words(folder / "report.html")
    text = words(three[1] / "when-to-believe-it.html")
    assert "none of the 3 labels" in text and "Most often confused" in words(three[1] / "report.html")


def test_two_labels_keep_their_order_and_their_columns(two):
    m, folder, run = two
    assert m["settings"]["label_names"] == ["poor", "good"] and set(m["baselines"]) == {"majority", "nbsvm", "tfidf"}
    rows = pd.read_parquet(folder / "predictions.parquet")
    assert list(rows) == ["id", "label", "rating", "prob_good", "logit_poor", "logit_good"]
    assert {"f1_poor", "f1_good"} < set(m) and "f1_pos" not in m and {"false_positives", "false_negatives"} < set(m["analysis"])
    assert Predictor.load(run / "model", device="cpu").labels == ("poor", "good")


def test_the_second_seed_answers_the_same_test_part(tmp_path):
    notes(("poor", "fine", "good"), 90).to_csv(tmp_path / "shop.csv", index=False)
    own = dict(data=str(tmp_path / "shop.csv"), text_column="note", label_column="verdict")
    first, again = (load_reviews(Config(**own, seed=s))[0] for s in (1, 2))
    assert first.part.tolist() == again.part.tolist() and set(first.part) == {"train", "test"} and first.id.is_unique


@pytest.mark.parametrize("change,said", [
    (lambda t: t.assign(verdict="good"), "all 60 rows have the label 'good'"),
    (lambda t: t.assign(verdict=t.verdict.where(t.index > 3)), "4 of 60 rows have no label"),
    (lambda t: t.assign(verdict=t.note), "60 different labels"),
    (lambda t: t.assign(verdict=["rare"] + ["good", "poor"] * 29 + ["good"]), "of the 1 rows with the label 'rare' leaves none to hold out"),
    (lambda t: t.assign(note=t.note.where(t.index != 7, " ")), "expected words"),
    (lambda t: t.rename(columns=dict(verdict="mark")), "set label_column to one of them"),
    (lambda t: t.assign(rating=99), "expected whole stars from 1 to 10"),
    (lambda t: t.iloc[:0], "no rows"),
])
def test_a_file_that_will_not_do_is_told_in_a_sentence(change, said, tmp_path):
    change(notes(("poor", "good"), 60)).to_csv(tmp_path / "shop.csv", index=False)
    with pytest.raises(DataError, match=re.escape(said)):
        load_reviews(Config(data=str(tmp_path / "shop.csv"), text_column="note", label_column="verdict"))
