"""Sphinx configuration. Nothing here needs the network."""

import re
import sys
from pathlib import Path

# The pages describe this tree, not a copy that happens to be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import picard

project = "picard"
author = "The picard authors"
copyright = author
release = version = picard.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings put names between single backticks, as Markdown does.
default_role = "code"

html_theme = "furo"
html_title = f"picard {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute of a docstring is then no second description of a property


def escape_stars(app, what, name, obj, options, lines):
    """Docstrings write shapes as (rows, *state); a lone star would open an emphasis that never ends."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")  # every second part stands between backticks, where a star is only a star
            parts[::2] = [re.sub(r"(?<![\w*\\])\*+(?=\w)", lambda m: r"\*" * len(m[0]), part) for part in parts[::2]]
            lines[number] = "`".join(parts)


def setup(app):
    """Escape before napoleon (priority 500) reads the docstring."""
    app.connect("autodoc-process-docstring", escape_stars, priority=400)
