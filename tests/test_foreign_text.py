"""Texts, names of files and labels come from others: on a page they are text and not markup."""

import csv
import warnings
from html.parser import HTMLParser

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from tools import ROOT, command, failed_politely, opinionated_model

from imdb_sentiment.analysis import plot_representations, plot_slices
from imdb_sentiment.evaluation import plot_comparison, plot_confusion, plot_roc_pr
from imdb_sentiment.exploration import plot_distinctive, plot_lengths, plot_stars
from imdb_sentiment.figures import house_style, save_figure
from imdb_sentiment.runs import read_json
from imdb_sentiment.explanations import highlight_words
from imdb_sentiment.rendering import render
from imdb_sentiment.report import chapter_html, first_figures, report_html, trust_html

# An element in italics, and two signs that show as <x> where somebody forgets to escape them.
MARK = "<i>&lt;x&gt;</i>"


class Seen(HTMLParser):
    "The elements of a page, their attributes, and what a reader sees of it."

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.text = set(), [], ""
        self.feed(str(page))  # `Markup` would escape what is added to it

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


ACTIVE = set("base embed form iframe input link meta object script svg video".split())


def only_shows(page):
    "Assert that nothing on a fragment of a page runs, loads something from elsewhere or restyles the page."
    seen = Seen(page)
    assert not seen.elements & ACTIVE
    for name, value in seen.attributes:
        assert not name.startswith("on") and name not in ("srcset", "formaction"), (name, value)
        assert not value.lower().strip().startswith("javascript:"), (name, value)
        assert name != "src" or value.startswith("data:image/png;base64,"), value
        assert name != "style" or "url(" not in value and "position" not in value, value


def shows_as_text(page):
    "Assert that the mark is seen on the page as it is written, and nowhere as markup."
    seen = Seen(page)
    assert MARK in seen.text
    assert "<x>" not in seen.text.replace(MARK, "")
    assert not seen.elements & {"i", "script"}
    assert not [name for name, _ in seen.attributes if name.startswith("on")]


def marked(value):
    "The same with the mark in place of every text."
    if isinstance(value, dict):
        return {name: marked(held) for name, held in value.items()}
    if isinstance(value, list):
        return [marked(held) for held in value]
    return MARK if isinstance(value, str) else value


def marked_names(table):
    "The same with the mark in every name."
    return {f"{MARK} {name}": value for name, value in table.items()}


@pytest.fixture(params=["data of others", "film reviews"])
def metrics(request):
    "Those of a published report, with the mark in place of every text, and in names that come from data."
    before = read_json(ROOT / "reports" / "imdb-minilm-best" / "metrics.json")
    m = marked(before)
    if request.param == "film reviews":  # which the page compares with the original write-up
        m["data_name"] = before["data_name"]
    m["chapters"], m["versions"] = marked_names(m["chapters"]), marked_names(m["versions"])
    slices = m["analysis"]["slices"]
    slices |= {title: marked_names(table) for title, table in slices.items()}
    return m


HOSTILE = {  # what the output of a chapter may hold: MIME type, content
    "script": ("text/html", "<script>alert(1)</script>"),
    "handler": ("text/html", '<p onclick="alert(1)" onmouseover=alert(1)>x</p>'),
    "image": ("text/html", "<img src=x onerror=alert(1)>"),
    "image from elsewhere": ("text/html", "<img src=https://a.example/x srcset=//a.example/y>"),
    "link": ("text/html", '<a href="java&#10;script:alert(1)">x</a><a href="JavaScript:x()">x</a>'),
    "style": ("text/html", '<p style="position:fixed;background:url(//a.example/x)">x</p>'),
    "cell": (
        "text/html",
        "<table><tr><td onclick=alert(1)>x<svg/onload=alert(1)></td></tr></table>",
    ),
    "frame": ("text/html", '<iframe srcdoc="&lt;script&gt;alert(1)&lt;/script&gt;"></iframe>'),
    "form": ("text/html", "<form action=//a.example><input name=q autofocus onfocus=alert(1)>"),
    "refresh": ("text/html", "<meta http-equiv=refresh content=0;url=//a.example><base href=//b>"),
    "not closed": ("text/html", "<p><a title='<img src=x onerror=alert(1)>' onclick=alert(1) "),
    "Markdown": ("text/markdown", "x <b onclick=alert(1)>y</b> [z](javascript:alert(1))"),
    "formula": ("text/latex", "$x</script><img src=x onerror=alert(1)>$"),
    "drawing": ("image/svg+xml", "<svg onload=alert(1)><script>alert(1)</script></svg>"),
    "program": ("application/javascript", "alert(1)"),
    "plain": ("text/plain", "<img src=x onerror=alert(1)>"),
}


def chapter_with(*outputs):
    "A chapter with these outputs."
    heading = nbformat.v4.new_markdown_cell("## Run this chapter")
    return nbformat.v4.new_notebook(
        cells=[heading, nbformat.v4.new_code_cell("x", outputs=list(outputs))]
    )


@pytest.fixture
def chapter():
    "A chapter whose outputs hold text of others: one is text, the others are markup of every kind."
    shown = nbformat.v4.new_output("display_data", {"text/html": "<p>shown</p>"})
    text = nbformat.v4.new_output("stream", name="stdout", text=MARK)
    data = [{kind: content} for kind, content in HOSTILE.values()]
    hostile = [nbformat.v4.new_output("display_data", d) for d in data]
    return chapter_with(shown, text, *hostile)


def test_names_on_the_page_of_a_report(metrics):
    shows_as_text(report_html(metrics, {}))


def test_names_on_the_second_page(metrics, chapter):
    shows_as_text(trust_html(metrics, chapter))


def test_a_title():
    shows_as_text(render("page.html", title=MARK, contents=[("#body", MARK)]))


def test_a_table():
    shows_as_text(render("table.html", rows=[(MARK, 1)], head=(MARK, "number")))


def test_output_of_a_chapter(chapter):
    page = chapter_html(chapter, "Data")
    shows_as_text(page)
    only_shows(page)
    assert "<p>shown</p>" in page


@pytest.mark.parametrize("kind", HOSTILE)
def test_kinds_of_output(kind):
    mime, content = HOSTILE[kind]
    data = nbformat.v4.new_output("display_data", {mime: content})
    traceback = nbformat.v4.new_output("error", ename=content, evalue="", traceback=[content])
    only_shows(chapter_html(chapter_with(data, traceback), "Data"))


def test_an_explained_text():
    text = f"a {MARK} film {MARK}"
    offsets = [(0, 0), (0, 1), (2, 2 + len(MARK)), (0, 0)]  # the rest was not read
    encoded = dict(input_ids=[0, 1, 2, 3], offsets=offsets, special=[1, 0, 0, 1])
    shows_as_text(highlight_words(text, encoded, np.array([0, 1.0, -1.0, 0]), MARK))


LABELS = ("$5 off", r"$\frac$", "<b>", "好", "坏", "नमस्ते", "👍", "👎", "a\u200db")
RNG = np.random.default_rng(0)
NUMBERS = np.arange(90) % len(LABELS)
REVIEWS = pd.DataFrame(
    dict(label=NUMBERS, tokens=RNG.integers(1, 99, 90), rating=RNG.integers(1, 11, 90))
)
WORDS = pd.DataFrame(dict(z=np.linspace(-3, 3, len(LABELS))), index=list(LABELS))
ACCURACIES = dict(accuracy=0.8, ci_low=0.7, ci_high=0.9, reviews=9)
MEASURED = pd.DataFrame([ACCURACIES] * len(LABELS), index=list(LABELS))
FIGURES = {
    "confusion_matrix": lambda: plot_confusion(np.eye(len(LABELS)) + 1, LABELS),
    "roc_pr": lambda: plot_roc_pr(NUMBERS, RNG.dirichlet([1] * len(LABELS), 90), LABELS),
    "comparison": lambda: plot_comparison(MEASURED),
    "lengths": lambda: plot_lengths(REVIEWS, LABELS, 50),
    "stars": lambda: plot_stars(REVIEWS, LABELS),
    "telling_words": lambda: plot_distinctive([WORDS, WORDS], LABELS[:2], LABELS[3]),
    "representations": lambda: plot_representations(
        dict(zip(LABELS, [RNG.normal(size=(90, 3))] * 2)), NUMBERS, LABELS
    ),
    "slices": lambda: plot_slices({LABELS[0]: MEASURED, LABELS[3]: MEASURED}),
}


@pytest.fixture
def style():
    "The style of the figures; whatever would be said about a character is an error."
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("error")
        house_style()
        yield
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_labels_in_a_figure(style, name, tmp_path):
    fig = save_figure(FIGURES[name](), tmp_path, name)
    fig.canvas.draw()
    texts = [text for text in fig.findobj(matplotlib.text.Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts)
    shown = {text.get_text() for text in texts}
    assert any(LABELS[0] in text for text in shown)
    for label in ("$5 off", r"$\frac$", "<b>"):
        assert name == "slices" or any(label in text for text in shown), (label, shown)


def test_labels_that_no_font_has(style, tmp_path, capsys, monkeypatch):
    "Two labels that the figure cannot show do not become two equal boxes, and one line says so."
    monkeypatch.setattr("imdb_sentiment.figures.FALLBACK_FONTS", ())
    house_style()
    fig = save_figure(FIGURES["confusion_matrix"](), tmp_path, "confusion_matrix")
    fig.canvas.draw()
    shown = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert [text for text in shown if text[0] != "\\"] == ["$5 off", r"$\frac$", "<b>", "a\u200db"]
    assert len(set(shown)) == len(LABELS)
    (line,) = capsys.readouterr().out.splitlines()
    assert all(c in line for c in "好坏न👍👎")


def test_labels_that_are_sentences(style, tmp_path):
    "They leave room for the figure: matplotlib would warn that it has none, and warnings are errors here."
    names = ("The delivery was late. " * 20, "word" * 100, "a\nb\n" * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seaborn draws the matrix before it is saved
        fig = plot_confusion(np.eye(3) + 1, names)
    save_figure(fig, tmp_path, "confusion_matrix")
    fig.canvas.draw()
    assert fig.axes[0].get_window_extent().width > 100
    save_figure(plot_stars(REVIEWS.assign(label=NUMBERS % 3), names), tmp_path, "stars")


def test_figures_of_a_page(style, metrics, tmp_path):
    for name in ("confusion_matrix", "comparison"):
        save_figure(FIGURES[name](), tmp_path, name)
    page = report_html(metrics, {}, first_figures(tmp_path, ["05b_evaluation", "03d_training"]))
    assert page.count("data:image/png;base64,") == 2


CELLS = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "a film", "=a;b", "'quoted", ""]


def test_a_spreadsheet(tmp_path):
    "With the option no cell and no name begins a formula; without it, everything comes back as it was."
    opinionated_model(tmp_path / "model")
    table = [["=text", "@note"], *([f"{cell} a dull film", cell] for cell in CELLS)]
    with open(tmp_path / "in.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f, quoting=csv.QUOTE_ALL).writerows(table)
    options = ["--model", tmp_path / "model", "--input", tmp_path / "in.csv"]
    options += ["--device", "cpu", "--text-column", "=text"]
    found = {}
    for name, further in ("plain", []), ("safe", ["--spreadsheet-safe"]):
        out = tmp_path / f"{name}.csv"
        done = command("predict", *options, "--out", out, *further)
        assert done.returncode == 0, done.stderr
        with open(out, newline="", encoding="utf-8") as f:
            found[name] = list(csv.reader(f))
    assert [row[:2] for row in found["plain"]] == table
    assert [row[2:] for row in found["plain"]] == [row[2:] for row in found["safe"]]
    for before, after in zip(table, found["safe"], strict=True):
        for cell, shown in zip(before, after):
            assert shown == (f"'{cell}" if cell[:1] and cell[0] in "=+-@\t\r" else cell)
    wrong = command("predict", *options, "--out", tmp_path / "x.jsonl", "--spreadsheet-safe")
    failed_politely(wrong, "--spreadsheet-safe is for --out FILE.csv or FILE.tsv")
