"""How Sphinx makes the site: ``make docs`` writes it into ``build/site``.

A page is a file in ``docs/`` and a line of a toctree in ``docs/index.md``; one without the other
is a warning, and warnings fail the build.
"""

import json
import re

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import eakd
import eakd.training

project, author, version = "eakd", "The eakd authors", eakd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
html_theme = "furo"  # its fonts are the reader's own: nothing is loaded from elsewhere
html_title = f"eakd {version}"
html_copy_source = False
myst_heading_anchors = 3  # `page.md#heading`, as on GitHub

autodoc_member_order = "bysource"
napoleon_use_ivar = True  # an attribute described in a class is no second entry
python_use_unqualified_type_names = True
default_role = "py:obj"  # `Name` in a docstring is a link where Name has a place here

# Its names load when they are asked for, and autodoc looks at those that are there.
vars(eakd.training).update({name: getattr(eakd.training, name) for name in eakd.training.__all__})


class LinkPages(SphinxTransform):
    """``docs/figures.md`` in backticks is a link to that page, a broken one if it is none."""

    default_priority = 400

    def apply(self) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            page = re.fullmatch(r"docs/([\w/-]+)\.(md|ipynb)", literal.astext())
            if page and not isinstance(literal.parent, nodes.reference):
                about = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page[1]}"}
                link = pending_xref("", **about, refexplicit=True, refwarn=True)
                link["refdoc"] = self.env.docname
                link.source, link.line = self.document["source"], literal.line
                literal.replace_self(link)
                link += nodes.inline(page[1], page[1], classes=["std", "std-doc"])


def read_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """A notebook as Markdown: its text, its code, and no output."""
    if app.env.doc2path(docname).suffix == ".ipynb":
        cells = json.loads(source[0])["cells"]
        texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        blocks = (f"```python\n{text}\n```" if kind == "code" else text for kind, text in texts)
        source[0] = "\n\n".join(blocks)


def setup(app: Sphinx) -> None:
    app.add_transform(LinkPages)
    app.connect("source-read", read_notebook)
