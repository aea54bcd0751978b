"""Links from the HTML of estimators in a notebook to their pages."""

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata


class Documented:
    """Mixin of estimators that link to their page, where the package names a site.

    The site is the one that ``project.urls`` in ``pyproject.toml`` calls
    "Documentation". The three attributes are those that scikit-learn reads.
    """

    @property
    def _doc_link_module(self):
        # scikit-learn links only to classes of the module that is named here.
        return "skprobex" if documentation_url() else None

    @property
    def _doc_link_template(self):
        return f"{documentation_url()}/generated/{{page}}.html"

    def _doc_link_url_param_generator(self):
        module = type(self).__module__.partition("._")[0]
        # These are documented as they are imported, from the package itself.
        if module in ("skprobex.layers", "skprobex.search"):
            module = "skprobex"
        return {"page": f"{module}.{type(self).__name__}"}


@cache
def documentation_url():
    """URL of the documentation as the installed package declares it, or None."""
    try:
        urls = metadata("skprobex").get_all("Project-URL") or []
    except PackageNotFoundError:  # imported from a folder
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named["Documentation"].rstrip("/") if "Documentation" in named else None
