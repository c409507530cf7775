"""Sphinx: ``sphinx-build -W docs docs/_build``, with the dependency group ``docs``."""

project = "llmdpd_torchrl"
html_title = project
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_fence_as_directive = ["mermaid"]
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
