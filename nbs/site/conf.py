"Settings of Sphinx for the docs site. `imdb-sentiment docs` lays everything out in one folder, this file among it."

project = html_title = "imdb_sentiment"
copyright = "2026 onwards, the imdb_sentiment maintainers"
language = "en"
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["home.md", "executed", "extra", ".doctrees", "**.tmp"]

nb_execution_mode = "off"  # the outputs are there already
nb_ipywidgets_js = {}  # nothing is loaded from other hosts
nb_merge_streams = True
nb_render_markdown_format = "myst"  # so that links in outputs are resolved
nb_mime_priority_overrides = [("*", "text/plain", 100)]
myst_enable_extensions = ["fieldlist", "deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # a notebook may go from its title to a third level
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


def level_captions(app, pagename, templatename, context, doctree):
    "Captions of the navigation are headings; a screen reader wants to know of which level."
    if tree := context.get("furo_navigation_tree"):
        context["furo_navigation_tree"] = tree.replace(
            'role="heading"', 'role="heading" aria-level="2"'
        )


def setup(app):
    app.connect(
        "html-page-context", level_captions, priority=900
    )  # after furo has made the navigation
