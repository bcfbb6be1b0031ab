"""Reading a run's files: what is whole is returned, what is damaged is named. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eakd.errors import UserError

LAST, PREVIOUS = "last.pt", "previous.pt"  # checkpoints
METRICS, DYNAMICS = "metrics.jsonl", "dynamics.jsonl"  # a line an epoch
SEGMENTS = 10  # of a line of dynamics
SNAPSHOTS = "snapshots"  # a folder of weights
SAMPLES = "samples"  # a folder of what each sample came to


def read_json(path: Path) -> Any | None:
    """The parsed file, or ``None`` if it is missing or damaged."""
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or ``None`` where there is no file.

    Raises:
        UserError: something else lies there; it is named.
    """
    try:
        found = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: found no readable file ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: found a damaged file ({_line(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: found {_kind(found)}, allowed is a JSON object")
    return found


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or ``None`` of a run that is not finished.

    Raises:
        UserError: the file is damaged, down to a single digit: its checksum tells. Files from
            before there was one are checked for the types of their values.
    """
    path = directory / "summary.json"
    summary = read_object(path)
    if summary is None:
        return None
    for key, value in summary.items():
        number = key.endswith(("_last", "_best"))
        kinds = (int, float) if number else SUMMARY.get(key, (object,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and object not in kinds):
            raise UserError(f"{path}: found {key} {value!r}, allowed is {_names(kinds)}")
    # Version 0.1 wrote no checksum; it did not say what its metrics are either.
    if not {"checksum", "metrics"}.isdisjoint(summary) and (
        summary.get("checksum") != checksum(summary)
    ):
        raise UserError(f"{path}: found values that do not fit its checksum: it was damaged")
    return summary


# Keys of summaries in every version and domain.
SUMMARY: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "epochs": (int,),
    "selection": (str,),
    "seconds": (int, float),
}


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def checksum(summary: Mapping[str, Any]) -> str:
    """Of all other keys of a summary, in hex."""
    kept = {key: value for key, value in summary.items() if key != "checksum"}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
    return text_digest(text)


def read_metrics(directory: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, or of another file of one object an epoch.

    A last line that was cut off, because a process is writing it or was killed while it did, is
    left out.

    Raises:
        UserError: any other line is damaged, epochs are missing, double or out of order, or the
            lines are not those that the run's summary was made from.
    """
    path = directory / name
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: found no readable file ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: found a damaged file ({_line(error)})") from error
    *whole, _ = text.split("\n")
    lines = parse_lines(path, whole)
    known = (read_json(directory / "summary.json") or {}).get("lines", {}).get(name)
    if known is not None and known != text_digest(text):
        raise UserError(
            f"{path}: found other lines than the run's summary was made from; the run's own "
            "command writes them again"
        )
    return lines


def parse_lines(path: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """One object for each text, of epochs in order; ``path`` is where they stand."""
    found: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = _parsed(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: found a damaged line {number} ({_line(error)})") from error
        epoch = line.get("epoch") if isinstance(line, dict) else None
        if type(epoch) is not int:
            raise UserError(
                f"{path}: found no epoch in line {number}, allowed is an object with one"
            )
        # Metrics are complete. Dynamics may begin later, or leave out what was not recorded.
        last = found[-1]["epoch"] if found else 0
        if epoch <= last or (path.name == METRICS and epoch != last + 1):
            raise UserError(
                f"{path}: found epoch {epoch} in line {number}, allowed is {last + 1}: lines are "
                "missing, double or out of order"
            )
        found.append(line)
    return found


def _parsed(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    return json.loads(text, parse_constant=refuse)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "…"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _names(kinds: Sequence[type]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested dictionaries."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return [] if found == wanted else [f"{prefix} (found {found!r}, wanted {wanted!r})"]
    lines = []
    for key in sorted({*found, *wanted}):
        name = f"{prefix}.{key}" if prefix else key
        lines += differences(found.get(key), wanted.get(key), name)
    return lines
