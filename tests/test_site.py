"The docs site: it builds without a warning, no link is broken, and a browser finds nothing to complain about."
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

pytest.importorskip("furo")
from imdb_sentiment.site import build_site, public_names  # noqa: E402

ROOT = Path(__file__).parents[1]
CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
browser_needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")


class Page(HTMLParser):
    "What a page links to, what can be linked to in it, and its pictures."
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.images = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a: self.ids.add(a["id"])
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag == "img": self.images.append(a)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site without the examples that would have to run; `make docs` runs them. Set SITE to a folder to look at one that is built already."
    return Path(os.environ["SITE"]) if "SITE" in os.environ else build_site(tmp_path_factory.mktemp("built") / "site", examples=False, say=lambda line: None)


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob("*.html")) if "_static" not in p.parts}


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_all_of_it_is_there(pages):
    for notebook in (ROOT / "nbs").glob("[0-9]*.ipynb"): assert f"chapters/{notebook.stem}.html" in pages
    for module in set(public_names().values()): assert f"reference/{module}.html" in pages
    for prose in (ROOT / "nbs/site").rglob("*.md"): assert prose.relative_to(ROOT / "nbs/site").with_suffix(".html").as_posix() in pages
    for report in (ROOT / "reports").glob("imdb-*/*.html"): assert f"reports/{report.parent.name}/{report.name}" in pages
    assert {"tutorial.html", "costs.html", "search.html", "changelog.html"} <= pages.keys()


def test_no_link_is_broken(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            path, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", path): continue
            target = (site / name).parent / unquote(path) if path else site / name
            if target.is_dir(): target /= "index.html"
            where = os.path.relpath(target.resolve(), site.resolve())
            if not target.exists() or (anchor and where in pages and unquote(anchor) not in pages[where].ids): broken.append((name, link))
    assert not broken


def test_figures_have_words_for_them(pages):
    for name, page in pages.items():
        for image in page.images: assert image.get("alt", "").strip() and not image["alt"].endswith((".png", ".svg")), (name, image["src"][:80])
    assert sum(len(p.images) for n, p in pages.items() if n.startswith("chapters/")) >= 15


def test_public_names_link_to_their_cells(pages):
    "Every public name stands in the reference; its link leads to the cell that defines it."
    for name, module in public_names().items(): assert f"imdb_sentiment.{module}.{name}" in pages[f"reference/{module}.html"].ids, name


def test_measured_results_are_shown(site):
    evaluation = (site / "chapters/04_evaluation.html").read_text(encoding="utf-8")
    assert "cell_output" in evaluation and "25,000" in evaluation or "25000" in evaluation


def test_troubleshooting_quotes_real_messages():
    "Each message of the page stands in the library; what varies in it is left out."
    library = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "imdb_sentiment").glob("*.py"))
    quoted = re.findall(r"^`(.+)`\n: ", (ROOT / "nbs/site/troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(quoted) > 15
    for message in quoted:
        parts = [p for p in re.split(r"\.\.\.|'[^']*'|\d+(?:_\w+)?|127\.0\.0\.1:8000|=\S+|\[serve\]", message) if len(p.strip()) > 3]
        assert parts and all(p.strip(" :,.'") in library for p in parts), message


@browser_needed
def test_pages_load_quietly_at_the_width_of_a_phone(address, pages, browser):
    context = browser.new_context(viewport=dict(width=390, height=800))
    page, heard = context.new_page(), []
    page.on("console", lambda m: heard.append((page.url, m.text)) if m.type == "error" and "favicon.ico" not in m.location["url"] else None)  # which a browser asks for by itself
    page.on("pageerror", lambda e: heard.append((page.url, str(e))))
    page.on("request", lambda r: heard.append((page.url, r.url)) if not r.url.startswith((address, "data:", "blob:")) else None)
    wide = []
    for name in pages:
        page.goto(f"{address}/{name}")
        if page.evaluate("document.documentElement.scrollWidth") > 390: wide.append(name)
    assert not heard and not wide
    context.close()


@browser_needed
def test_search_finds_a_class(address, browser):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=TransformerClassifier")
    page.wait_for_selector("ul.search li a")
    assert any("TransformerClassifier" in t for t in page.locator("ul.search li a").all_inner_texts())
    page.locator("ul.search li a", has_text="TransformerClassifier").first.click()
    assert "reference/model.html" in page.url
    page.close()


@browser_needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(address, browser, scheme):
    "Axe finds nothing serious: contrast, headings, names, focus."
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(color_scheme=scheme)
    page, found = context.new_page(), []
    for name in ("index", "costs", "how-to/own-data", "chapters/04_evaluation", "chapters/05b_explanations", "reference/model", "search"):
        page.goto(f"{address}/{name}.html")
        found += [(name, v["id"], v["nodes"][0]["html"][:120]) for v in axe.run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not found
    context.close()
