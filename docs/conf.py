"""Sphinx settings: `make docs` builds the site into `build/docs`."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs import generate

project = "MRLM"
author = "the MRLM authors"
release = version = importlib.metadata.version("mrlm")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build", "cards/*.json"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = f"MRLM {release}"


autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # docstrings write `names` as Markdown does


def setup(app):
    """Write the generated pages before Sphinx reads the sources, and read docstrings as Markdown writes them."""
    generate.write(Path(__file__).resolve().parent / "reference")
    app.connect("source-read", generate.links)
    app.connect("autodoc-process-docstring", generate.markdown_to_rst)
