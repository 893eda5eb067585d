"""Sphinx's settings for the book; `python -m book.build` hands it the staged pages.

Unusual here: a reader without a network sees everything. Mathematics is drawn by MathJax's one
file, which the build puts beside the pages; nothing is fetched for widgets, whose static twins are
stored in the lessons.
"""

from book import docstrings
from minik2 import __version__

project = "minik2"
author = "minik2 authors"
copyright = "minik2 authors, MIT licence"
version = release = __version__
language = "en"
html_title = "minik2"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_static"]

# Lessons are shown as they were run and stored; the build runs nothing.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
myst_all_links_external = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_display_short_literal_types = True
python_maximum_signature_line_length = 76
viewcode_line_numbers = True

html_theme = "sphinx_book_theme"
html_css_files = ["book.css"]
html_js_files = [("book.js", {"priority": 900})]
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search
}
html_context = {"default_mode": "auto"}
mathjax_path = "tex-svg.js"


def setup(app):
    # The staged folder, which MathJax's file is in besides this one's.
    app.config.html_static_path = [str(app.srcdir / "_static")]
    app.connect("autodoc-process-docstring", docstrings.to_rst)
    app.connect("doctree-read", docstrings.unlink_builtins)
