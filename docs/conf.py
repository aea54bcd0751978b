"""Configuration of the documentation: ``sphinx-build -W -b html docs OUT``."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx_gallery.sorting import ExplicitOrder

sys.path.insert(0, str(Path(__file__).parent))
import speed_figures

project = "skprobex"
author = "The skprobex developers"
copyright = "2026, The skprobex developers"
release = installed_version("skprobex")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
# No intersphinx: the documentation builds without a network.

templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["skprobex.css"]
exclude_patterns = ["_build", "**/GALLERY_HEADER.rst"]
default_role = "literal"

autosummary_generate = True
autodoc_typehints = "none"
# Beside a page, methods without the name of their class.
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # In the order in which a newcomer asks.
    "within_subsection_order": ExplicitOrder(
        [
            f"plot_{name}.py"
            for name in (
                "quickstart",
                "model_selection",
                "views",
                "importance",
                "layers",
                "hyperparameters",
                "networks",
                "files",
                "memory",
                "cluster",
                "trees",
                "heritage",
                "language",
            )
        ]
        + ["*"]
    ),
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("skprobex",),
    "reference_url": {"skprobex": None},
    "show_memory": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "skprobex"
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def visit_math(translator, node):
    """Write a formula as MathML: browsers draw it without a script or a network."""
    formula = tex2mathml(node.astext())
    if isinstance(node, nodes.math_block):
        formula = formula.replace("<math", '<math display="block"', 1)
    translator.body.append(formula)
    raise nodes.SkipNode


def setup(app):
    """Register what is above with Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("builder-inited", speed_figures.draw)
