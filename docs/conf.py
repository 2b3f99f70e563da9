"""How Sphinx builds the site; `build.py` calls it. Everything a page needs lies beside the page: nothing is loaded from other hosts."""
import importlib.metadata
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "peace_nb"
author = copyright = "The peace_nb contributors"
extensions = ["myst_nb", "sphinx.ext.mathjax", "tools.codelinks"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nitpicky = True
add_module_names = False   # the title of a page says the module

# Notebooks: outputs as they are kept, nothing is run.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["myst.header"]   # some notebooks go from their title to a third level

# Formulas: one file of MathJax, which lies in a Python package.
_mathjax = importlib.metadata.distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")
mathjax_path = "tex-svg.js"

html_theme = "sphinx_book_theme"
html_title = "peace_nb"
html_static_path = ["_static", str(_mathjax)]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_sourcelink_suffix = ""
html_show_sphinx = False
html_theme_options = {
    "show_navbar_depth": 1, "max_navbar_depth": 3, "show_toc_level": 2, "collapse_navbar": True,
    "use_download_button": True, "use_fullscreen_button": False, "home_page_in_toc": False, "navigation_with_keys": False,
    "logo": {"text": "peace_nb"},
}
if _repository := os.environ.get("SITE_REPOSITORY"):   # set where the site is published
    html_theme_options |= {"repository_url": _repository, "use_repository_button": True, "use_issues_button": True}
