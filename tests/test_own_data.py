"""Reports on data of one's own: two labels and three, from a single file, and what is said when the file will not
do."""

import ast
import random
import re
import shutil
from dataclasses import fields
from html import unescape
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score
from tools import ROOT, command, failed_politely

from imdb_sentiment.config import Config
from imdb_sentiment.runs import read_json
from imdb_sentiment.labels import DataError
from imdb_sentiment.tasks import make_task
from imdb_sentiment.data import load_reviews, load_split
from imdb_sentiment.model_card import model_card
from imdb_sentiment.prediction import Predictor
from imdb_sentiment.staleness import CHAPTER_LIST

SMALL = dict(
    epochs=3, resamples=20, warmup_steps=2, batch_size=16, learning_rate=0.005, max_length=32
)
COLUMNS = dict(text_column="note", label_column="verdict")
SAID = dict(
    poor=["broke at once", "cheap plastic", "sent it back", "a waste"],
    fine=["does its job", "okay for the price", "nothing special", "neither good nor bad"],
    good=["a delight", "works perfectly", "well made", "would buy again"],
)
PRODUCTS = ["kettle", "lamp", "headset", "chair"]
ENDS = ["I think", "my wife says", "to be fair"]
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def notes(labels, n, seed=0, hostile=""):
    "Made-up notes of a shop's customers: two remarks each on some product, one of ten under a wrong label."
    rng, rows = random.Random(seed), []
    for i in range(n):
        label = labels[i % len(labels)]
        first, second = rng.sample(SAID[label], 2)
        product = rng.choice(PRODUCTS)
        text = f"The {product}, order {i}: {first}. {second.capitalize()}, {rng.choice(ENDS)}.{hostile}"
        rows.append(dict(note=text, verdict=rng.choice(labels) if rng.random() < 0.1 else label))
    return pd.DataFrame(rows)


def imports_in(source):
    "The import statements of a cell."
    return [
        ast.unparse(n)
        for n in ast.parse(source).body
        if isinstance(n, (ast.Import, ast.ImportFrom))
    ]


def project(folder):
    "The chapters without examples and asserts, which other tests run: a project whose report takes half the time."
    (folder / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copy(ROOT / "nbs" / "00_config.ipynb", folder / "nbs")  # by which a project is known
    for chapter in CHAPTER_LIST:
        notebook = nbformat.read(ROOT / "nbs" / f"{chapter.name}.ipynb", 4)
        start = next(
            i for i, c in enumerate(notebook.cells) if c.source.startswith("## Run this chapter")
        )
        before = [c for c in notebook.cells[:start] if c.cell_type == "code"]
        imports = nbformat.v4.new_code_cell(
            "\n".join(line for c in before for line in imports_in(c.source))
        )
        first = [c for c in before if "wait_passively()" in c.source]  # before PyTorch is imported
        exported = [c for c in before if c.source.startswith("#| export")]
        notebook.cells = [*first, imports, *exported, *notebook.cells[start:]]
        nbformat.write(notebook, folder / "nbs" / f"{chapter.name}.ipynb")


def report(table, path, **settings):
    "The command, as anybody would call it: metrics, folder of the report, run folder."
    if path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False)
    project(path.parent)
    settings = {**SMALL, **COLUMNS, **settings, "data": path}
    sets = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    done = command("report", "--name", "own", *sets, cwd=path.parent, timeout=None)
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(f"on the test split of (the labels of )?{path.name}", done.stdout)
    folder = path.parent / "reports" / "own"
    return read_json(folder / "metrics.json"), folder, path.parent / "runs" / "own"


def words(page):
    "What a reader of the page sees."
    text = re.sub(
        r"<(style|head)\b.*?</\1>|<img[^>]*>", " ", page.read_text(encoding="utf-8"), flags=re.S
    )
    return unescape(re.sub(r"<[^>]+>", " ", text))


OF_TASK = next(f.metadata["help"] for f in fields(Config) if f.name == "task")
FILM_WORDS = ("IMDb", "film", "movie", "stars", "plot", "VADER:", "write-up")


def is_about_the_shop(folder):
    for page in ("report.html", "when-to-trust-it.html"):
        text = words(folder / page).replace(OF_TASK, "")  # the table of settings names every task
        for word in FILM_WORDS:
            found = re.search(rf"(.{{60}})?\b{word}(.{{60}})?", text, re.S)
            assert not found, (page, word, found)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return report(
        notes(("poor", "fine", "good"), 240), tmp_path_factory.mktemp("three") / "shop.csv"
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Of two labels in an order of their own, with markup in each text."
    table = notes(("poor", "good"), 160, hostile=HOSTILE)
    return report(
        table, tmp_path_factory.mktemp("two") / "shop.jsonl", label_names="poor,good", epochs=1
    )


TAGS = dict(
    broken=("broke", "sent it back"), cheap=("cheap", "price"), praise=("delight", "well made")
)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    "Of several labels for a text, or none: whether a note says so, in a column for each."
    table = notes(("poor", "fine", "good"), 300)
    says = lambda remarks: table.note.str.contains("|".join(remarks), case=False).astype(int)
    table = table.assign(**{tag: says(remarks) for tag, remarks in TAGS.items()})
    settings = dict(task="multilabel", label_column=",".join(TAGS), epochs=6)
    return report(table, tmp_path_factory.mktemp("several") / "shop.csv", **settings)


def test_several_labels_from_end_to_end(several):
    m, folder, run = several
    names = m["settings"]["label_names"]
    assert names == sorted(TAGS)
    rows, reviews = pd.read_parquet(folder / "predictions.parquet"), load_split(run)
    test = reviews[reviews.part == "test"].set_index("id").loc[rows.id]
    bits = lambda sets: np.array([[n >> i & 1 for i in range(3)] for n in sets])
    says = [test.text.str.contains("|".join(TAGS[name]), case=False) for name in names]
    assert (bits(rows.label) == np.stack(says, 1)).all()
    predicted = bits(rows.predicted)
    limits = m["inference"]["label_thresholds"]
    assert (predicted == (rows[[f"prob_{name}" for name in names]].to_numpy() >= limits)).all()
    assert m["accuracy"]["value"] == pytest.approx((predicted == bits(rows.label)).all(1).mean())
    macro = f1_score(bits(rows.label), predicted, average="macro")
    assert m["f1_macro"]["value"] == pytest.approx(macro)
    assert macro > 0.5  # it learns
    assert set(m["baselines"]) == {"majority", "tfidf"}
    assert "robustness" not in m and "05b_evaluation" not in m["chapters"]


@pytest.mark.parametrize("name", ["three", "several"])
def test_links_of_a_page_lead_somewhere(request, name):
    page = (request.getfixturevalue(name)[1] / "report.html").read_text(encoding="utf-8")
    ids = set(re.findall(r' id="([^"]+)"', page))
    links = re.findall(r'href="(?:report\.html)?#([^"]+)"', page)
    assert len(links) > 10
    assert [link for link in links if link not in ids] == []


def test_several_labels_are_exported_with_their_card(several, tmp_path):
    _, folder, run = several
    args = ("export", "--model", run / "model", "--out", tmp_path / "hub", "--report", "own")
    done = command(*args, cwd=folder.parent.parent)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "Decides which labels apply to a text" in card
    assert "exactly its labels" in card and "in which texts it errs" not in card
    asked = [text for text, _ in ASKED]
    expected = [p.labels for p in Predictor.load(run / "model", device="cpu")(asked)]
    assert expected[0] == ("broken", "cheap")
    for form in ("huggingface", "onnx", "int8"):
        if (run / "deployment" / form).exists():
            found = Predictor.load(run / "deployment" / form, device="cpu")(asked)
            assert [p.labels for p in found] == expected, form


def test_what_needs_one_label_says_so(several, tmp_path):
    _, folder, run = several
    suite = tmp_path / "suite.csv"
    suite.write_text("text,label\nfine,cheap\n")
    cases = [
        ("evaluate", "--model", run / "model", "--suite", suite),
        ("bench", "inference", "--trained", run),
        ("bench", "transfer", run),
    ]
    for args in cases:
        failed_politely(command(*args, cwd=folder.parent.parent), "give a text one label")


def test_three_labels_from_end_to_end(three):
    m, _, _ = three
    assert m["data_name"] == "shop.csv"
    assert m["settings"]["data"] == "shop.csv"
    assert m["settings"]["label_names"] == ["fine", "good", "poor"]
    assert [len(m["confusion"]), *map(len, m["confusion"])] == [3] * 4
    assert m["test_reviews"] == sum(map(sum, m["confusion"]))
    assert 30 < m["test_reviews"] < 66  # a fifth of 240, more or less
    assert (
        m["accuracy"]["value"] > m["baselines"]["majority"]["accuracy"]["value"] + 0.1
    )  # it learns
    assert set(m["baselines"]) == {"majority", "nbsvm", "tfidf"}
    assert set(m["paired"]) == {"nbsvm", "tfidf"}
    assert "original_write_up" not in m


def test_three_labels_are_all_scored(three):
    m, _, _ = three
    for score in ("precision", "recall", "f1"):
        assert {f"{score}_{n}" for n in ("fine", "good", "poor", "macro", "weighted")} < set(m)
    assert 0 <= m["calibration"]["ece_after"]["value"] <= 1
    assert m["calibration"]["nll"] > 0
    assert 0.5 < m["roc_auc"] <= 1


def test_three_labels_are_analysed(three):
    m, _, _ = three
    assert "false_positives" not in m["analysis"]
    assert m["analysis"]["confused"]
    for pair in m["analysis"]["confused"]:
        assert set(pair) == {"label", "answer", "reviews", "share"}
    assert set(m["analysis"]["slices"]) == {"By length in tokens", "By what was read", "By label"}
    assert m["robustness"]["pairs"] == {}
    assert "negation inserted" not in m["robustness"]["perturbations"]
    assert "neutral sentences appended" in m["robustness"]["perturbations"]
    assert m["explanations"]["comprehensiveness"] > m["explanations"]["random_comprehensiveness"]
    assert set(m["data"]["telling"]["words"]) == {"fine", "good", "poor"}


def test_three_labels_in_the_predictions(three):
    m, folder, _ = three
    rows, task = (
        pd.read_parquet(folder / "predictions.parquet"),
        make_task(("fine", "good", "poor")),
    )
    columns = [f"{kind}_{n}" for kind in ("prob", "logit") for n in ("fine", "good", "poor")]
    assert list(rows) == ["id", "label", "rating", *columns]
    assert abs(task.probabilities_in(rows).sum(1) - 1).max() < 1e-6
    assert rows.rating.isna().all()
    probabilities = rows[columns[:3]].to_numpy()
    assert (probabilities.argmax(1) == rows.label).mean() == pytest.approx(m["accuracy"]["value"])
    assert (task.predicted(rows) == probabilities.argmax(1)).all()


ASKED = [  # a note, and the label that it gets
    ("The lamp, order 7: broke at once. Cheap plastic, I think.", "poor"),
    ("The lamp, order 8: works perfectly. Well made, I think.", "good"),
]


@pytest.mark.parametrize("folder", ["model", "deployment/huggingface", "deployment/onnx"])
def test_the_third_label_is_answered(three, folder):
    model = three[2] / folder
    if folder.endswith("onnx") and not model.exists():
        pytest.skip("without the extra [onnx]")
    predictor = Predictor.load(model, device="cpu")
    answers = predictor([text for text, _ in ASKED])
    assert predictor.labels == ("fine", "good", "poor")
    assert [a.label for a in answers] == [label for _, label in ASKED]
    assert set(answers[0].probabilities) == set(predictor.labels)
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)


def test_pages_and_card_speak_of_the_shop(three, two):
    for metrics, folder, _ in (three, two):
        is_about_the_shop(folder)
        card = model_card(metrics, "shop").replace("imdb_sentiment", "")
        assert not re.search(r"film|movie|IMDb|sentiment of|English", card)
        assert metrics["data_name"] in words(folder / "report.html")
    assert "none of the 3 labels" in words(three[1] / "when-to-trust-it.html")
    assert "Most often confused" in words(three[1] / "report.html")


def quoting(folder, texts):
    "The published files that hold the beginning of a text."
    files = [p for p in folder.rglob("*") if p.suffix in (".html", ".ipynb", ".json")]
    contents = {p: unescape(p.read_text(encoding="utf-8")) for p in files}
    return {p.name for p in files if any(text[:40] in contents[p] for text in texts)}


@pytest.mark.parametrize("name", ["three", "several"])
def test_no_text_is_published_if_none_may_be(request, name):
    "The chapters need not run again for that."
    m, folder, run = request.getfixturevalue(name)
    more = {k: m["settings"][k] for k in ("task", "epochs")}
    more["label_column"] = m["settings"]["label_column"]
    sets = {
        **SMALL,
        **COLUMNS,
        **more,
        "data": folder.parent.parent / "shop.csv",
        "keep_texts": "no",
    }
    words = [word for k, v in sets.items() for word in ("--set", f"{k}={v}")]
    args = ("report", "--name", "quiet", "--run-dir", run, *words)
    done = command(*args, cwd=folder.parent.parent, timeout=None)
    assert done.returncode == 0, done.stderr + done.stdout
    ran = re.findall(r"(\w+): running", done.stdout)
    assert ran == ["00a_runs"]  # which shows the settings
    texts = load_split(run).text
    assert "report.html" in quoting(folder, texts)  # or the test would prove nothing
    quiet = folder.with_name("quiet")
    assert quoting(quiet, texts) == set()
    assert (quiet / "predictions.parquet").exists()
    assert "left out: keep_texts=no" in (quiet / "report.html").read_text(encoding="utf-8")


class Active(HTMLParser):
    "What would do something in a browser: scripts, and elements that have one in an attribute."

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        if tag == "script" or any(name.startswith("on") for name, _ in attrs):
            self.found.append((tag, attrs))


def test_markup_in_a_text_is_shown_as_text(two):
    _, folder, _ = two
    seen = "".join(words(folder / "report.html").split())
    assert "".join(HOSTILE.split()) in seen  # or the test would prove nothing
    for page in ("report.html", "when-to-trust-it.html"):
        assert Active(folder / page).found == []


def test_two_labels_keep_their_order_and_their_columns(two):
    m, folder, run = two
    assert m["settings"]["label_names"] == ["poor", "good"]
    assert set(m["baselines"]) == {"majority", "nbsvm", "tfidf"}
    rows = pd.read_parquet(folder / "predictions.parquet")
    assert list(rows) == ["id", "label", "rating", "prob_good", "logit_poor", "logit_good"]
    assert {"f1_poor", "f1_good"} < set(m)
    assert "f1_pos" not in m
    assert {"false_positives", "false_negatives"} < set(m["analysis"])
    assert Predictor.load(run / "model", device="cpu").labels == ("poor", "good")


def test_the_second_seed_answers_the_same_test_part(tmp_path):
    notes(("poor", "fine", "good"), 90).to_csv(tmp_path / "shop.csv", index=False)
    own = dict(data=str(tmp_path / "shop.csv"), **COLUMNS)
    first, again = (load_reviews(Config(**own, seed=s))[0] for s in (1, 2))
    assert first.part.tolist() == again.part.tolist()
    assert first.part.value_counts(normalize=True)["test"] == pytest.approx(0.2, abs=0.02)
    assert set(first.part) == {"train", "test"}
    assert first.id.is_unique


def rare(table):
    return table.assign(verdict=["rare"] + ["good", "poor"] * 29 + ["good"])


FAULTS = [  # what is done to a table of 60 rows, and what the refusal says
    (lambda t: t.assign(verdict="good"), "the only label in 60 rows is 'good'"),
    (lambda t: t.assign(verdict=t.verdict.where(t.index > 3)), "4 of 60 rows cannot be used"),
    (lambda t: t.assign(verdict=t.verdict.where(t.index > 3)), "line 2 of shop.csv: the label is"),
    (lambda t: t.assign(note=t.note.where(t.index > 3, " ")), "the text is empty or blank"),
    (lambda t: t.assign(verdict=t.note), "60 different labels"),
    (rare, "The 1 rows with the label 'rare' are one text or one group"),
    (lambda t: t.rename(columns=dict(verdict="mark")), "set label_column to one of them"),
    (lambda t: t.iloc[:0], "no rows"),
]


@pytest.mark.parametrize("change, said", FAULTS, ids=[said for _, said in FAULTS])
def test_a_file_that_will_not_do_is_told_in_a_sentence(change, said, tmp_path):
    path = tmp_path / "shop.csv"
    change(notes(("poor", "good"), 60)).to_csv(path, index=False)
    with pytest.raises(DataError, match=re.escape(said)) as e:
        load_reviews(Config(data=str(path), **COLUMNS))
    assert str(path) in str(e.value) or "rows" in said
