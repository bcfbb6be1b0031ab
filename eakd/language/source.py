"""Where the rows of a data set lie, for configs. Nothing is read before a tokenizer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eakd.data.pipeline import stream
from eakd.errors import UserError, check_number, check_text
from eakd.language.text import Rows, load_rows

HERE = Path(__file__).parent / "data"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TextSource:
    """The files of a data set.

    Attributes:
        files: split → file and the values that its lines must have.
        tokenizer: of models that have none, those with random weights.
        divide: makes the splits of one file's rows, where ``files`` has only ``"train"``.
    """

    files: Mapping[str, tuple[Path, Mapping[str, str]]]
    tokenizer: Path | None = None
    divide: Callable[[Rows], Mapping[str, Rows]] | None = field(default=None, repr=False)

    def load(self, tokenizer: Any, **settings: Any) -> dict[str, Rows]:
        """The rows of each split.

        Args:
            **settings: of `load_rows`.
        """
        found = {
            split: load_rows(
                path,
                tokenizer,
                training=split == "train",
                where=where,
                key=f"data.{'dev' if split == 'val' else split}",
                **settings,
            )
            for split, (path, where) in self.files.items()
        }
        return dict(self.divide(found["train"])) if self.divide else found


def text_files(
    train: str, dev: str | None = None, test: str | None = None, root: str | None = None
) -> TextSource:
    """Files of JSON lines, see `eakd.language.text.parse` for what a line is.

    Args:
        train: trained on.
        dev: chooses the best epoch, if there is a ``test`` too; else it is the test split.
        test: measured beside it.
        root: the folder that the names are relative to.
    """
    given = {"train": train, "val": dev, "test": test}
    for name, value in zip(("train", "dev", "test"), given.values(), strict=True):
        if value is not None:
            check_text(name, value)
    paths = {k: Path(root or "", v) for k, v in given.items() if v is not None}
    if "test" not in paths:
        if "val" not in paths:
            raise UserError("dev: found none, allowed is a file that the run is measured on")
        paths["test"] = paths.pop("val")
    return TextSource({split: (path, {}) for split, path in paths.items()})


def dolly(root: str, seed: int = 0, dev: int = 1000, test: int = 500) -> TextSource:
    """databricks-dolly-15k in a split of our own.

    The first ``test`` rows whose prompt is short enough are the test set of MiniLLM, DSKD and the
    paper; ``dev`` others are drawn by ``seed``. MiniLLM's own draw is `data=dolly_minillm`.

    Args:
        root: a folder with ``databricks-dolly-15k.jsonl``, as Databricks publishes it.
    """
    check_text("root", root)
    for name, value in (("seed", seed), ("dev", dev), ("test", test)):
        check_number(name, value, at_least=0 if name == "seed" else 1, integer=True)

    def divide(rows: Rows) -> dict[str, Rows]:
        if len(rows) <= dev + test:
            raise UserError(
                f"data: found {len(rows)} rows in {rows.path}, allowed is more than the {dev} and "
                f"{test} that are set aside"
            )
        order = torch.randperm(len(rows) - test, generator=stream(seed, "dolly")).tolist()
        parts = {"train": sorted(order[dev:]), "val": sorted(order[:dev])}
        found = {
            name: Rows([rows[test + i] for i in part], rows.counts, rows.path)
            for name, part in parts.items()
        }
        return found | {"test": Rows(list(rows[:test]), rows.counts, rows.path)}

    return TextSource({"train": (Path(root) / "databricks-dolly-15k.jsonl", {})}, divide=divide)


def python_docs() -> TextSource:
    """First sentences of the public docstrings in Python's standard library, with a tokenizer.

    4,183 questions like ``What does `textwrap.dedent(text)` do?``, split by module so that near
    copies stay on one side. Made by ``python -m eakd.language.python_docs``.
    """
    path = HERE / "python_docs.jsonl.gz"
    files = {split: (path, {"split": split}) for split in SPLITS}
    return TextSource(files, HERE / "python_docs.tokenizer.json")
