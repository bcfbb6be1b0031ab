"""Answers on disk, a file for each set and sampling seed: a killed evaluation goes on from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eakd.errors import UserError
from eakd.files import write_text, writing
from eakd.training.reading import differences


class Prediction(NamedTuple):
    """An answer.

    Attributes:
        row: the line number of its prompt.
        answer: as it is scored.
        tokens: how many, without the one that ended it.
        ended: whether one did.
    """

    row: int
    answer: str
    tokens: int
    ended: bool


class Predictions:
    """A file of JSON lines: what the answers are of, then an answer a line, in any order.

    A process that was killed while it wrote leaves half a line, which is dropped.

    Args:
        path: the file, made by the first `add`.
        about: what decides the answers: checkpoint, rows, seed, sampling, precision.
        replace: begin anew where the file holds the answers of something else.

    Attributes:
        done: row → its prediction.

    Raises:
        UserError: the file holds the answers of something else, and is left alone.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], replace: bool = False):
        self.path, self.about = path, json.loads(json.dumps(dict(about)))
        self.done: dict[int, Prediction] = {}
        if not path.exists():
            return
        lines = path.read_bytes().split(b"\n")
        head = _parsed(lines[0])
        if (head is None and len(lines) == 1) or (replace and head != self.about):
            path.unlink()  # killed in its first line, or not wanted
            return
        if head != self.about:
            # The checkpoint stands first in a message, since all follows from it.
            changed = differences(head, self.about)[:3] if isinstance(head, dict) else ["no header"]
            raise UserError(
                f"{path}: found predictions of something else ({', '.join(changed)}), allowed are "
                "those of this evaluation; results=FOLDER is another place, replace=true "
                "overwrites"
            )
        for line in lines[1:-1]:
            prediction = _prediction(_parsed(line))
            if prediction is not None:
                self.done[prediction.row] = prediction
        if len(self.done) != len(lines) - 2 or lines[-1]:
            texts = map(_line, self.done.values())
            write_text(path, "".join([json.dumps(self.about) + "\n", *texts]))

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Append answers; they are on disk when this returns."""
        predictions = list(predictions)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            if file.tell() == 0:
                file.write(json.dumps(self.about) + "\n")
            file.writelines(map(_line, predictions))
            file.flush()
            os.fsync(file.fileno())
        self.done |= {prediction.row: prediction for prediction in predictions}


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction._asdict()) + "\n"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _prediction(found: Any) -> Prediction | None:
    kinds = {"row": int, "answer": str, "tokens": int, "ended": bool}
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        return None
    if any(type(found[key]) is not kind for key, kind in kinds.items()):
        return None
    return Prediction(**found)
