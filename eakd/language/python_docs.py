"""Make the demonstration's data: ``python -m eakd.language.python_docs``.

First sentences of the public docstrings of Python's standard library, which may be redistributed
under the PSF licence: "What does `textwrap.dedent(text)` do?", "Remove any common leading
whitespace from every line in `text`." A snapshot is shipped, so that numbers are equal on every
version of Python; this makes another, of the Python that runs it.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import inspect
import json
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from eakd.language.source import HERE, SPLITS

VOCABULARY = 1024
END = "<|endoftext|>"
# Of a hundred modules by the hash of their name: the rest is trained on.
SHARES = {"test": 10, "val": 10}
# They do something when they are imported, or are tests and toys.
LEFT_OUT = {"antigravity", "this", "idlelib", "test", "turtledemo", "lib2to3", "pip", "ensurepip"}
LEFT_OUT |= {"distutils"}  # setuptools puts its own in its place
SALT = "32"  # of the hash: chosen because it makes both splits about a tenth of the rows
LONGEST = 200  # characters of an answer, and of a question


def rows() -> list[dict[str, str]]:
    """Every question with its answer, module by module; equal answers once."""
    found, seen = [], set()
    for module in modules():
        split = split_of(module.__name__)
        for name, thing in members(module):
            answer = first_sentence(inspect.getdoc(thing))
            question = f"What does `{name}{signature(thing)}` do?"
            if answer is None or answer in seen or len(question) > LONGEST:
                continue
            seen.add(answer)
            found.append({"split": split, "instruction": question, "output": answer})
    return found


def modules() -> Iterator[ModuleType]:
    """The public modules of the standard library that can be imported here, by name."""
    names = {name for name in sys.stdlib_module_names if not name.startswith("_")} - LEFT_OUT
    for name in sorted(names):
        try:
            module = importlib.import_module(name)
        except Exception:  # of another system
            continue
        yield module
        for each in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
            last = each.name.rpartition(".")[2]
            if last.startswith("_") or last in ("test", "tests"):
                continue
            try:
                yield importlib.import_module(each.name)
            except Exception:
                continue


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes that a module defines, and the classes' public methods."""
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(thing) or inspect.isclass(thing)):
            continue
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        yield f"{module.__name__}.{name}", thing
        for key, method in sorted(vars(thing).items()) if inspect.isclass(thing) else ():
            method = getattr(method, "__func__", method)
            if not key.startswith("_") and inspect.isroutine(method):
                yield f"{module.__name__}.{name}.{key}", method


def first_sentence(text: str | None) -> str | None:
    """In one line, with its full stop; ``None`` of what is no sentence."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    match = re.match(r"[A-Z].*?[.](?=\s|$)", paragraph)
    if not match or not 20 <= len(match[0]) <= LONGEST or not match[0].isascii():
        return None
    return match[0] if " " in match[0] else None


def signature(thing: Any) -> str:
    """``(text, width=70)``, without what only a running program can show."""
    try:
        found = inspect.signature(thing)
    except (ValueError, TypeError):
        return ""
    names = [
        f"{'*' if p.kind is p.VAR_POSITIONAL else '**' if p.kind is p.VAR_KEYWORD else ''}{name}"
        for name, p in found.parameters.items()
        if name not in ("self", "cls")
    ]
    return f"({', '.join(names)})"


def split_of(module: str) -> str:
    """By the first part of a module's name, so that near copies stay on one side."""
    place = int(hashlib.sha256((SALT + module.partition(".")[0]).encode()).hexdigest(), 16) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return SPLITS[0]


def train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of `VOCABULARY` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main(folder: Path = HERE) -> None:
    """Write the rows and the tokenizer into ``folder``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that will be removed
        found = rows()
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in found)
    # Without the time of day, so that equal rows make equal bytes.
    (folder / "python_docs.jsonl.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    train = [f"{r['instruction']}\n{r['output']}" for r in found if r["split"] == "train"]
    train_tokenizer(train).save(str(folder / "python_docs.tokenizer.json"), pretty=False)
    counts = {split: sum(row["split"] == split for row in found) for split in SPLITS}
    print(f"Python {sys.version.split()[0]}: {counts} rows in {folder}")


if __name__ == "__main__":
    main()
