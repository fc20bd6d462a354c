"The docs site: it builds without a warning, no link is broken, and a browser reports no errors."

import functools
import http.server
import os
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from shutil import which
from urllib.parse import unquote, urldefrag

import pytest
from tools import MADE, refuses_intruders

pytest.importorskip("furo")
from imdb_sentiment.reference import chapter_of, entry_points, library, public_names  # noqa: E402
from imdb_sentiment.site import GROUPS, best_report, build_site, first_page  # noqa: E402

ROOT = Path(__file__).parents[1]
PROSE = ROOT / "nbs" / "site"
CHAPTERS = chapter_of(ROOT / "nbs")  # module to chapter
CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
browser_needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")


class Page(HTMLParser):
    "The links of a page, the anchors in it, and its pictures."

    def __init__(self, path):
        super().__init__()
        self.links = []
        self.ids = set()
        self.images = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A folder with the site in `site`, without the examples that would have to run; `make docs` runs them."
    folder = tmp_path_factory.mktemp("built")
    build_site(folder / "site", examples=False, say=lambda line: None, work=folder / "work")
    return folder


@pytest.fixture(scope="module")
def site(request):
    "The site, that of test_targets if it ran before. Set SITE to a folder to test one that is built already."
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    if "site" in MADE:
        return MADE["site"] / "_site"
    return request.getfixturevalue("built") / "site"


@pytest.fixture(scope="module")
def pages(site):
    "Path in the site to page."
    found = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path.relative_to(site).as_posix(): Page(path) for path in found}


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def expected_pages():
    "What the site must have."
    fixed = [
        "index",
        "tutorial",
        "costs",
        "leaderboard",
        "overview",
        "search",
        "changelog",
        "reference/index",
        "reference/helpers",
    ]
    yield from (f"{name}.html" for name in fixed)
    yield from (f"chapters/{path.stem}.html" for path in (ROOT / "nbs").glob("[0-9]*.ipynb"))
    yield from (f"reference/{module}.html" for module in library())
    yield from (
        path.relative_to(PROSE).with_suffix(".html").as_posix() for path in PROSE.rglob("*.md")
    )
    yield from (
        path.relative_to(ROOT).as_posix() for path in (ROOT / "reports").glob("imdb-*/*.html")
    )


def test_the_site_is_complete(pages):
    assert set(expected_pages()) - pages.keys() == set()


def test_a_build_writes_nowhere_else(request):
    "Sphinx and its extensions leave nothing beside the site, nor in the project."
    if "site" in MADE:
        pytest.skip("test_targets looks at it, in the checkout where it built the site")
    built = request.getfixturevalue("built")
    assert sorted(path.name for path in built.iterdir()) == ["site", "work"]
    assert not (ROOT / "jupyter_execute").exists()


def is_broken(site, pages, name, link):
    "Whether a link of the page leads nowhere within the site."
    path, anchor = urldefrag(link)
    if re.match(r"[a-z]+:", path):
        return False
    target = (site / name).parent / unquote(path) if path else site / name
    if target.is_dir():
        target /= "index.html"
    page = pages.get(os.path.relpath(target.resolve(), site.resolve()))
    return not target.exists() or bool(anchor and page and unquote(anchor) not in page.ids)


def test_no_link_is_broken(site, pages):
    links = [(name, link) for name, page in pages.items() for link in page.links]
    assert [(name, link) for name, link in links if is_broken(site, pages, name, link)] == []


def test_figures_have_a_text(pages):
    images = [(name, image) for name, page in pages.items() for image in page.images]
    for name, image in images:
        text = image.get("alt", "").strip()
        assert text and not text.endswith((".png", ".svg")), (name, image["src"][:80])
    assert sum(name.startswith("chapters/") for name, image in images) >= 15


def test_public_names_are_in_the_reference(pages):
    front = {name: module for names in entry_points().values() for name, module in names.items()}
    for module, names in library().items():
        for name in names:
            page = "index" if front.get(name) == module else module
            assert f"imdb_sentiment.{module}.{name}" in pages[f"reference/{page}.html"].ids, name


def test_public_names_link_to_the_cell_that_defines_them(pages):
    linked = {
        link for name, page in pages.items() if name.startswith("reference/") for link in page.links
    }
    for module, names in library().items():
        for name in names:
            assert f"../chapters/{CHAPTERS[module]}.html#def-{name}" in linked, name


def test_the_reference_begins_with_what_people_import(site):
    front = (site / "reference" / "index.html").read_text(encoding="utf-8")
    names = ["Predictor", "Config", "load_reviews", "make_model", "train", "serve"]
    places = [front.index(f'id="imdb_sentiment.{public_names()[name]}.{name}"') for name in names]
    assert places == sorted(places)


def test_the_sidebar_shows_titles_by_group(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for chapter in CHAPTERS.values():
        assert f">{GROUPS[chapter[:2]]}</span>" in index
        assert f">{chapter}</a>" not in index


def test_the_first_page_shows_the_best_result(site, pages):
    index = (site / "index.html").read_text(encoding="utf-8")
    assert first_page(ROOT / "reports")["result"] in index
    figures = [image["src"] for image in pages["index.html"].images]
    assert len(figures) == 1
    report = f"reports/{best_report(ROOT / 'reports').name}/report.html"
    assert report in pages["index.html"].links


def test_measured_results_are_shown(site):
    evaluation = (site / "chapters" / f"{CHAPTERS['evaluation']}.html").read_text(encoding="utf-8")
    assert "cell_output" in evaluation
    assert "25,000" in evaluation or "25000" in evaluation


def constant_parts(message):
    "What does not vary in a quoted message."
    varying = r"\.\.\.|'[^']*'|\d+[a-z]?(?:_\w+)?|127\.0\.0\.1:8000|=\S+|\[serve\]"
    return [part.strip(" :,.'") for part in re.split(varying, message) if len(part.strip()) > 3]


def test_troubleshooting_quotes_real_messages():
    sources = (ROOT / "imdb_sentiment").rglob("*.py")
    messages = "".join(path.read_text(encoding="utf-8") for path in sources)
    page = (PROSE / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^`(.+)`\n: ", page, re.M)
    assert len(quoted) > 15
    assert all(constant_parts(message) for message in quoted)
    gone = [m for m in quoted if not all(part in messages for part in constant_parts(m))]
    assert not gone, (
        "troubleshooting.md quotes messages that the library does not have:\n" + "\n".join(gone)
    )


@browser_needed
def test_pages_load_without_errors_at_the_width_of_a_phone(address, pages, browser):
    context = browser.new_context(viewport=dict(width=390, height=800))
    page = context.new_page()
    reported = []

    def on_console(message):
        # A browser asks for favicon.ico by itself.
        if message.type == "error" and "favicon.ico" not in message.location["url"]:
            reported.append((page.url, message.text))

    def on_request(request):
        if not request.url.startswith((address, "data:", "blob:")):
            reported.append((page.url, request.url))

    page.on("console", on_console)
    page.on("pageerror", lambda error: reported.append((page.url, str(error))))
    page.on("request", on_request)
    wide = []
    for name in pages:
        page.goto(f"{address}/{name}")
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            wide.append(name)
    assert reported == []
    assert wide == []
    context.close()


@browser_needed
def test_search_finds_a_class(address, browser):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=TransformerClassifier")
    page.wait_for_selector("ul.search li a")
    found = page.locator("ul.search li a", has_text="TransformerClassifier")
    assert found.count() > 0
    found.first.click()
    assert f"reference/{public_names()['TransformerClassifier']}.html" in page.url
    page.close()


def test_every_page_has_a_policy(site):
    "Also a page whose text is about policies."
    meta = '<meta http-equiv="Content-Security-Policy" content="default-src'
    without = []
    for path in site.rglob("*.html"):
        head = path.read_text(encoding="utf-8").partition("</head>")[0]
        if head.count(meta) != 1:
            without.append(path.relative_to(site).as_posix())
    assert without == []


@browser_needed
def test_no_script_of_others_runs(site, address, pages, browser):
    "Not on a page of the site, not on one of a report, and not if they are opened from disk."
    report = next(name for name in pages if name.endswith("/report.html"))
    page = browser.new_page()
    for name in ("index.html", f"chapters/{CHAPTERS['explanations']}.html", report):
        for begin in (address, site.resolve().as_uri()):
            page.goto(f"{begin}/{name}")
            refuses_intruders(page)
    page.close()


@browser_needed
def test_it_can_be_read_from_disk(site, browser):
    page = browser.new_page()
    reported = []
    page.on("console", lambda m: reported.append(m.text) if m.type == "error" else None)
    page.goto(f"{site.resolve().as_uri()}/index.html")
    assert page.evaluate("document.body.dataset.theme")  # the theme's scripts have run
    assert page.evaluate("document.styleSheets.length") > 3
    assert reported == []
    page.close()


ACCESSIBLE = (
    "index",
    "costs",
    "how-to/own-data",
    f"chapters/{CHAPTERS['evaluation']}",
    f"chapters/{CHAPTERS['explanations']}",
    "reference/index",
    f"reference/{public_names()['TransformerClassifier']}",
    "search",
)


@browser_needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(address, browser, scheme):
    "Axe finds nothing serious: contrast, headings, names, focus."
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    found = []
    for name in ACCESSIBLE:
        page.goto(f"{address}/{name}.html")
        for v in axe.run(page).response["violations"]:
            if v["impact"] in ("serious", "critical"):
                found.append((name, v["id"], v["nodes"][0]["html"][:120]))
    assert found == []
    context.close()
