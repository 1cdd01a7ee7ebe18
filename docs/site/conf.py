"""How `make docs` builds the site: from the markdown of the repository as it stands, and from the public docstrings."""

import inspect
import shutil
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]  # the build reads from here, so that the links of README hold in the site too
sys.path.insert(0, str(ROOT / "src"))

from gmmvit.version import __version__  # noqa: E402

project = "gmmvit"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/site/*.rst"]
exclude_patterns = [".*", "benchmarks", "build", "data", "dist", "runs", "site", "src", "tests"]  # not walked through
highlight_language = "text"  # what is indented in the markdown are commands
myst_heading_anchors = 4  # named as GitHub names them

default_role = "code"  # single backticks in docstrings
autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch.nn.Module say nothing about ours
napoleon_numpy_docstring = False
napoleon_use_param = False  # "a, b: ..." stays one entry
napoleon_use_rtype = False

html_theme = "furo"  # its fonts and scripts are part of it: no page needs the network
html_title = f"gmmvit {__version__}"
html_copy_source = False
python_maximum_signature_line_length = 100  # a longer one has a line for each argument

# The side bar. README itself has no table of contents, which GitHub would show as code.
CONTENTS = """

```{toctree}
:hidden:
:caption: Use

docs/data
docs/training
docs/predict
docs/export
docs/attach
docs/timm
docs/sweep
docs/platforms
```

```{toctree}
:hidden:
:caption: Look up

docs/site/api
docs/gallery
docs/results
docs/log
docs/reliability
CHANGELOG
CONTRIBUTING
```
"""


def add_contents(app, docname, source):
    if docname == root_doc:
        source[0] += CONTENTS


def callable_package(app, what, name, thing, options, lines):
    """`gmmvit.attach` is a package that can be called: its page shows what the call does."""
    if isinstance(thing, ModuleType) and what == "function":
        lines[:] = inspect.getdoc(getattr(thing, name.rpartition(".")[2])).splitlines()


def add_index(app, exception):
    """README is the first page, also under the name that a server looks for."""
    if exception is None:
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", callable_package, priority=100)  # before the sections are read
    app.connect("build-finished", add_index)
