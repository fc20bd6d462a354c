"""Texts, names of files and labels come from others: on a page they are text and not markup."""

from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from tools import ROOT

from imdb_sentiment.runs import read_json
from imdb_sentiment.explanations import highlight_words
from imdb_sentiment.rendering import render
from imdb_sentiment.report import chapter_html, report_html, trust_html

# An element in italics, and two signs that show as <x> where somebody forgets to escape them.
MARK = "<i>&lt;x&gt;</i>"


class Seen(HTMLParser):
    "The elements of a page, and what a reader sees of it."

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = set(), ""
        self.feed(str(page))  # `Markup` would escape what is added to it

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)

    def handle_data(self, data):
        self.text += data


def shows_as_text(page):
    "Assert that the mark is seen on the page as it is written, and nowhere as markup."
    seen = Seen(page)
    assert MARK in seen.text
    assert "<x>" not in seen.text.replace(MARK, "")
    assert not seen.elements & {"i", "script"}


@pytest.fixture
def metrics():
    "Those of a published report, with the mark in all that somebody else named."
    m = read_json(ROOT / "reports" / "imdb-minilm-best" / "metrics.json")
    m |= dict(name=MARK, data_name=MARK)
    m["encoder"]["backbone"] = MARK
    m["machine"]["processor"] = MARK
    return m


@pytest.fixture
def chapter():
    "A chapter whose output holds text of others, escaped as IPython does, and a script."
    output = nbformat.v4.new_output(
        "display_data", {"text/html": "<p>shown</p><script>alert(1)</script>"}
    )
    text = nbformat.v4.new_output("stream", name="stdout", text=MARK)
    heading = nbformat.v4.new_markdown_cell("## Run this chapter")
    return nbformat.v4.new_notebook(
        cells=[heading, nbformat.v4.new_code_cell("x", outputs=[output, text])]
    )


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
    assert "<p>shown</p>" in page


def test_an_explained_text():
    text = f"a {MARK} film {MARK}"
    offsets = [(0, 0), (0, 1), (2, 2 + len(MARK)), (0, 0)]  # the rest was not read
    encoded = dict(input_ids=[0, 1, 2, 3], offsets=offsets, special=[1, 0, 0, 1])
    shows_as_text(highlight_words(text, encoded, np.array([0, 1.0, -1.0, 0]), MARK))
