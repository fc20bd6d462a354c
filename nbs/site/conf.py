"Settings of Sphinx for the docs site. `imdb-sentiment docs` lays everything out in one folder, this file among it."

import json
from pathlib import Path

from imdb_sentiment.reference import document, show_signature, source_link

found = json.loads(Path(__file__).with_name("found.json").read_text(encoding="utf-8"))

project = html_title = "imdb_sentiment"
copyright = "2026 onwards, the imdb_sentiment maintainers"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "sphinx_copybutton"]
exclude_patterns = ["sidebar.md", "extra"]  # one is included, the other copied
suppress_warnings = ["myst.header"]  # a notebook may go from its title to a third level

# Notebooks are shown as they are: they ran before.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # nothing is loaded from other hosts
nb_merge_streams = True
nb_render_markdown_format = "myst"  # so that links in outputs are resolved
nb_mime_priority_overrides = [("*", "text/plain", 100)]

myst_enable_extensions = ["fieldlist", "deflist", "colon_fence", "attrs_inline", "substitution"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
myst_substitutions = found["first_page"]

# The reference: see nbs/10_reference.ipynb.
add_module_names = False
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as in the source, where a name says more than its value
autodoc_typehints = "description"

copybutton_exclude = ".linenos, .gp, .go"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_extra_path = ["extra"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#005a8c",
        "color-brand-content": "#005a8c",
        "color-brand-visited": "#5b3c88",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6fb9e6",
        "color-brand-content": "#6fb9e6",
        "color-brand-visited": "#b79be0",
    },
    "top_of_page_buttons": [],
}


def linkcode_resolve(domain, info):
    return source_link(info, found["chapters"])


def level_captions(app, pagename, templatename, context, doctree):
    "Captions of the navigation are headings; a screen reader needs their level."
    if tree := context.get("furo_navigation_tree"):
        captions = tree.replace('role="heading"', 'role="heading" aria-level="2"')
        context["furo_navigation_tree"] = captions


def setup(app):
    app.connect("autodoc-process-docstring", document)
    app.connect("autodoc-process-signature", show_signature)
    app.connect(
        "html-page-context", level_captions, priority=900
    )  # after furo has made the navigation
