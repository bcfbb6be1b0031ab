"""Language: causal language models taught by larger ones, answer by answer.

transformers is imported inside functions: this import needs none.
"""

from eakd.language.distillers import SFT, SequenceKD
from eakd.language.task import Language
from eakd.language.text import Row, Rows, load_rows

__all__ = ["SFT", "Language", "Row", "Rows", "SequenceKD", "load_rows"]
