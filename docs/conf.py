"""Configuration of the documentation: ``sphinx-build -W -b html docs OUT``."""

from importlib.metadata import version as installed_version

from sphinx_gallery.sorting import ExplicitOrder

project = "skprobex"
author = "The skprobex developers"
copyright = "2026, The skprobex developers"
release = installed_version("skprobex")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
# No intersphinx: the documentation builds without a network.

templates_path = ["_templates"]
html_static_path = ["_static"]
exclude_patterns = ["_build", "**/GALLERY_HEADER.rst"]
default_role = "literal"

autosummary_generate = True
autodoc_typehints = "none"
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
