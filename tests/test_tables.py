"""Tables as people have them, at each door: what training, `check`, prediction and the suites make of the same file. A
row is used as it was written, put into quarantine with its reason, or the file is refused in one sentence."""

import gzip
import io
import json
import os
import random
import time
import zipfile

import openpyxl
import pandas as pd
import pytest
from tools import opinionated_model

from imdb_sentiment.config import Config
from imdb_sentiment.runs import remove
from imdb_sentiment.sources import InputError
from imdb_sentiment.labels import DataError
from imdb_sentiment.rows import inspect_source
from imdb_sentiment.data import load_reviews
from imdb_sentiment.check import source_facts
from imdb_sentiment.prediction import Predictor
from imdb_sentiment.files import predict_file
from imdb_sentiment.suites import read_suite

GOOD = [(f"Order {i} came on time, and it works.", "good") for i in range(50)]
BAD = [(f"Order {i} never came; nobody answers.", "bad") for i in range(50)]
ROWS = [row for pair in zip(GOOD, BAD) for row in pair]


def quoted(value):
    return '"' + value.replace('"', '""') + '"'


def csv_text(rows=ROWS, delimiter=",", header="text,label"):
    lines = [delimiter.join(map(quoted, row)) for row in rows]
    return "\n".join([header.replace(",", delimiter), *lines]) + "\n"


def with_line(line, at=10):
    lines = csv_text().splitlines()
    return "\n".join([*lines[:at], line, *lines[at:]]) + "\n"


def zipped(name, content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._" + name, b"of a Mac")
    return packed.getvalue()


def workbook(rows=ROWS):
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in [("Text", "Label"), *rows]:
        book.active.append(row)
    book.save(file)
    return file.getvalue()


def parquet(rows=ROWS):
    file = io.BytesIO()
    pd.DataFrame(rows, columns=["text", "label"]).to_parquet(file)
    return file.getvalue()


def jsonl(rows=ROWS):
    return "".join(json.dumps(dict(text=t, label=v), ensure_ascii=False) + "\n" for t, v in rows)


def labels(*names):
    return [(text, names[i % len(names)]) for i, (text, _) in enumerate(ROWS)]


ACCENTS = [(text.replace("came", "est arrivé à l'heure, très bien"), label) for text, label in ROWS]
RUSSIAN = [(text.replace("Order", "Заказ"), label) for text, label in ROWS]
SIGNS = [(f"{'👍' if i % 2 else '👎'}" * (i + 1), "good" if i % 2 else "bad") for i in range(60)]
CHINESE = [
    (f"第{i}号订单{'很好用' if i % 2 else '坏了'}", "good" if i % 2 else "bad") for i in range(60)
]
ODD = [("007", "007"), ("NA", "1e3")] + [(f"Text {i}", ("007", "1e3")[i % 2]) for i in range(40)]

USED = [  # kind, file, content, settings, the rows that are used
    ("commas", "a.csv", csv_text(), {}, ROWS),
    ("semicolons", "a.csv", csv_text(delimiter=";"), {}, ROWS),
    ("tabs", "a.tsv", csv_text(delimiter="\t"), {}, ROWS),
    ("commas in a .tsv", "a.tsv", csv_text(), {}, ROWS),
    ("bars", "a.csv", csv_text(delimiter="|"), {}, ROWS),
    ("a sep= line", "a.csv", "sep=;\n" + csv_text(delimiter=";"), {}, ROWS),
    ("another delimiter", "a.csv", csv_text(delimiter="@"), dict(delimiter="@"), ROWS),
    ("a byte order mark", "a.csv", "\ufeff" + csv_text(), {}, ROWS),
    ("CRLF", "a.csv", csv_text().replace("\n", "\r\n"), {}, ROWS),
    ("cp1252", "a.csv", csv_text(ACCENTS).encode("cp1252"), {}, ACCENTS),
    ("UTF-16", "a.csv", csv_text(ACCENTS).encode("utf-16"), {}, ACCENTS),
    (
        "a set encoding",
        "a.csv",
        csv_text(RUSSIAN).encode("cp1251"),
        dict(encoding="cp1251"),
        RUSSIAN,
    ),
    ("gzip", "a.csv.gz", gzip.compress(csv_text().encode()), {}, ROWS),
    ("zip", "a.zip", zipped("a.csv", csv_text()), {}, ROWS),
    ("Excel", "a.xlsx", workbook(), {}, ROWS),
    ("parquet", "a.parquet", parquet(), {}, ROWS),
    ("JSON lines", "a.jsonl", jsonl(), {}, ROWS),
    ("JSON lines with a mark", "a.jsonl", "\ufeff" + jsonl(), {}, ROWS),
    ("a header in capitals", "A.CSV", csv_text(header="TEXT,Label"), {}, ROWS),
    ("no header", "a.csv", csv_text(header="").lstrip("\n"), dict(columns="text,label"), ROWS),
    ("empty fields too many", "a.csv", csv_text().replace('"\n', '",,\n'), {}, ROWS),
    ("emoji only", "a.csv", csv_text(SIGNS), {}, SIGNS),
    ("Chinese", "a.csv", csv_text(CHINESE), {}, CHINESE),
    ("numbers that are text", "a.csv", csv_text(ODD), {}, ODD),
    ("the labels 0 and 1", "a.csv", csv_text(labels("0", "1")), {}, labels("0", "1")),
    (
        "a label named rating",
        "a.csv",
        csv_text(header="text,rating"),
        dict(label_column="rating"),
        ROWS,
    ),
]

LEFT_OUT = [  # kind, content, what is said of the one row that cannot be used
    ("a stray quote", with_line('"stray,good'), "the row is not valid CSV"),
    ("a comma too many", with_line("fine, really,good"), "fields in the row: 3, in the header: 2"),
    ("a field too few", with_line("fine"), "fields in the row: 1, in the header: 2"),
    ("a blank text", with_line(" ,good"), "the text is empty or blank"),
]

REFUSED = [  # kind, file, content, settings, what is said
    ("EBCDIC", "a.csv", csv_text(), dict(encoding="cp500"), "save the file as UTF-8"),
    ("a repeated column", "a.csv", "text,text,label\na,b,c\n", {}, "names a column twice: 'text'"),
    (
        "a column that is not there",
        "a.csv",
        csv_text(),
        dict(text_column="review"),
        "no column 'review'",
    ),
    ("an old Mac's lines", "a.csv", csv_text().replace("\n", "\r"), {}, "bare carriage return"),
    (
        "Cyrillic in cp1251",
        "a.csv",
        csv_text([("Очень хорошо, советую", "good")] * 9).encode("cp1251"),
        {},
        "is not UTF-8",
    ),
    (
        "an unknown encoding",
        "a.csv",
        csv_text(),
        dict(encoding="utf-9"),
        "encoding='utf-9' is unknown",
    ),
    (
        "a cut gzip",
        "a.csv.gz",
        gzip.compress(csv_text().encode() * 99)[:-40],
        {},
        "cannot be unpacked to its end",
    ),
    ("no parquet", "a.parquet", b"PAR1 and nothing else", {}, "not a parquet file"),
    ("no workbook", "a.xlsx", b"PK", {}, "not an Excel workbook"),
    ("an empty file", "a.csv", b"", {}, "the file is empty"),
]


def write(folder, name, content):
    path = folder / name
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    path.write_bytes(raw)
    return path


def config(path, settings):
    changed = {k: tuple(v.split(",")) if k == "columns" else v for k, v in settings.items()}
    return Config(data=str(path), **changed)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    opinionated_model(folder)
    return Predictor.load(folder, device="cpu")


def predicted(predictor, path, settings, out):
    "Numbers of rows, and the texts and the rejected rows that were written."
    cfg = config(path, settings)
    source = inspect_source(path, (cfg.text_column,), cfg.delimiter, cfg.encoding, cfg.columns)
    counts = predict_file(predictor, source, out, cfg.text_column)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    texts = [next(v for k, v in row.items() if k.lower() == "text") for row in rows]
    rejected = out.with_name(out.name + ".rejected.jsonl")
    found = list(out.parent.glob("*rejected*"))
    said = found[0].read_text(encoding="utf-8") if found else ""
    return counts, texts, said, rejected


@pytest.mark.parametrize("kind, name, content, settings, rows", USED, ids=[c[0] for c in USED])
def test_rows_are_used_as_they_were_written(
    kind, name, content, settings, rows, tmp_path, predictor
):
    path = write(tmp_path, name, content)
    reviews, names, (table,) = load_reviews(config(path, settings))
    read = list(zip(reviews.text, reviews.label.map(dict(enumerate(names)))))
    assert sorted(read) == sorted(rows)
    assert table.bad == []
    facts = source_facts(config(path, settings))
    assert facts["rows"] == len(rows)
    assert sum(facts["labels"].values()) == sum(facts["parts"].values()) == len(rows)
    counts, texts, _, _ = predicted(predictor, path, settings, tmp_path / "out.jsonl")
    assert texts == [text for text, _ in rows]
    assert (counts["rows"], counts["rejected"]) == (len(rows), 0)


@pytest.mark.parametrize("kind, content, said", LEFT_OUT, ids=[c[0] for c in LEFT_OUT])
def test_a_bad_row_costs_no_other(kind, content, said, tmp_path, predictor):
    path = write(tmp_path, "a.csv", content)
    reviews, names, (table,) = load_reviews(Config(data=str(path)))
    assert sorted(reviews.text) == sorted(text for text, _ in ROWS)
    assert [(bad["row"], said in bad["reason"]) for bad in table.bad] == [(11, True)]
    with pytest.raises(DataError, match="1 of 101 rows cannot be used"):
        load_reviews(Config(data=str(path), max_bad_rows=0))
    (listed,) = source_facts(Config(data=str(path)))["quarantined"]
    assert said in listed["reason"]
    counts, texts, rejected, _ = predicted(predictor, path, {}, tmp_path / "out.jsonl")
    assert texts == [text for text, _ in ROWS]
    assert counts["rejected"] == 1
    assert said in rejected


def test_a_damaged_byte_costs_its_row(tmp_path):
    path = write(tmp_path, "a.csv", csv_text(ACCENTS) + "na\udcefve,good\n")
    reviews, _, (table,) = load_reviews(Config(data=str(path)))
    assert sorted(reviews.text) == sorted(text for text, _ in ACCENTS)
    assert "not UTF-8: byte 0xef at position" in table.bad[0]["reason"]


@pytest.mark.parametrize(
    "kind, name, content, settings, said", REFUSED, ids=[c[0] for c in REFUSED]
)
def test_a_file_is_refused_in_a_sentence(kind, name, content, settings, said, tmp_path, predictor):
    path = write(tmp_path, name, content)
    for door in (load_reviews, source_facts):
        with pytest.raises((DataError, InputError)) as e:
            door(config(path, settings))
        assert said in str(e.value)
    with pytest.raises((DataError, InputError)) as e:
        predicted(predictor, path, settings, tmp_path / "out.jsonl")
    assert said in str(e.value)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []


@pytest.mark.parametrize(
    "kind", ["commas", "semicolons", "a byte order mark", "UTF-16", "gzip", "Excel"]
)
def test_suites_read_the_same_tables(kind, tmp_path):
    name, content = next((c[1], c[2]) for c in USED if c[0] == kind)
    path = write(tmp_path, name, content)
    found, table = read_suite(path)
    assert found == "labelled"
    wanted = next(c[4] for c in USED if c[0] == kind)
    assert list(zip(table.text, table.label)) == wanted


def test_blank_texts_are_counted(tmp_path):
    "79 of 3,150 are more than 2%; with a higher limit, the others are used."
    rows = [(f"Text number {i}", "good" if i % 2 else "bad") for i in range(3071)]
    path = write(tmp_path, "a.csv", csv_text(rows + [(" ", "good")] * 79))
    with pytest.raises(
        DataError, match="79 of 3,150 rows cannot be used, more than max_bad_rows=0.02"
    ):
        load_reviews(Config(data=str(path)))
    reviews, *_ = load_reviews(Config(data=str(path), max_bad_rows=0.03))
    assert len(reviews) == 3071


def test_labels_that_are_the_same_number_are_refused(tmp_path):
    path = write(tmp_path, "a.csv", csv_text(labels("0", "0.0", "1", "1.0", "neutral")))
    with pytest.raises(DataError, match="0.0"):
        load_reviews(Config(data=str(path)))


def test_several_text_columns_are_joined(tmp_path):
    lines = [f"Title {i},Body {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    path = write(tmp_path, "a.csv", "Title,Body,label\n" + "\n".join(lines))
    reviews, *_ = load_reviews(Config(data=str(path), text_column="title,body"))
    assert sorted(reviews.text)[0] == "Title 0\n\nBody 0"


def test_a_folder_is_read_by_the_names_of_its_files(tmp_path):
    (tmp_path / "parts").mkdir()
    for i in range(2):
        write(tmp_path / "parts", f"part-{i}.parquet", parquet(ROWS[50 * i : 50 * i + 50]))
    assert len(load_reviews(Config(data=str(tmp_path / "parts")))[0]) == 100
    (tmp_path / "split").mkdir()
    write(tmp_path / "split", "Train.csv", csv_text(ROWS[:60]))
    write(tmp_path / "split", "TEST.csv.gz", gzip.compress(csv_text(ROWS[60:]).encode()))
    counts = load_reviews(Config(data=str(tmp_path / "split")))[0].part.value_counts()
    assert counts.to_dict() == dict(train=60, test=40)


def test_adding_rows_moves_none(tmp_path):
    first = load_reviews(Config(data=str(write(tmp_path, "a.csv", csv_text(ROWS[:-1])))))[0]
    again = load_reviews(Config(data=str(write(tmp_path, "b.csv", csv_text(ROWS[::-1])))))[0]
    parts = [dict(zip(reviews.text, reviews.part)) for reviews in (first, again)]
    assert {text: parts[1][text] for text in parts[0]} == parts[0]


MUTATED = [
    (c[1].lower(), c[2])
    for c in USED
    if c[0]
    in {
        "commas",
        "tabs",
        "UTF-16",
        "cp1252",
        "gzip",
        "zip",
        "Excel",
        "parquet",
        "JSON lines",
        "emoji only",
    }
]


def mutated(raw, rng):
    "The content with some bytes changed, removed, repeated or moved."
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at, size = rng.randrange(len(raw) + 1), rng.choice([1, 2, 7, 100])
        piece = rng.choice(
            [
                raw[at : at + size],
                rng.randbytes(size),
                b'"',
                b"\n",
                b",",
                b"\0",
                b"\xff",
                b'""',
                b"\r",
            ]
        )
        if rng.random() < 0.5:
            raw[at : at + size] = piece
        else:
            raw[at:at] = piece
    return bytes(raw)


def test_damaged_files_never_surprise(tmp_path, predictor):
    "Each is read, or refused with an error of this library; and no usable row comes from nowhere."
    rng, outcomes = random.Random(7), dict(read=0, refused=0)
    until = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", 5))
    while time.monotonic() < until:
        name, content = rng.choice(MUTATED)
        raw = content if isinstance(content, bytes) else content.encode()
        path = write(tmp_path, name, mutated(raw, rng))
        try:
            reviews, _, tables = load_reviews(Config(data=str(path), max_bad_rows=1))
        except (DataError, InputError) as e:
            assert "\n" not in str(e).strip()
            outcomes["refused"] += 1
        else:
            assert len(reviews) <= 110
            outcomes["read"] += 1
        out = tmp_path / "out.jsonl"
        try:
            predicted(predictor, path, {}, out)
        except InputError as e:
            assert "\n" not in str(e).strip()
            assert not out.exists()
        for file in [*tmp_path.iterdir()]:
            remove(file)
    print(outcomes)
    assert min(outcomes.values()) > 0
