"""A result as files: ``data.npz`` and ``figure.json`` hold it whole, ``data.csv`` as a table.

The same result gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from eakd.analysis.result import Panel, Result, Series
from eakd.errors import UserError
from eakd.files import write_atomically, write_json, write_text
from eakd.reproduce.escaping import csv_cell, one_line
from eakd.training.reading import read_object

ARRAYS, DESCRIPTION, TABLE = "data.npz", "figure.json", "data.csv"
COLUMNS = ("panel", "series", "seed", "x", "y", "low", "high", "low2", "high2", "value", "text")
NONE = ("",) * 4  # no bands


def write_result(
    folder: Path, result: Result, made_from: Mapping[str, Any], page: Mapping[str, Any]
) -> None:
    """Write the three files, ``figure.json`` last: it says that the others are there.

    Args:
        made_from: what the result was computed from, see `is_current`.
        page: what pages say of it, see `eakd.analysis.page.Shown`.

    Raises:
        OSError: naming the file.
    """
    arrays: dict[str, np.ndarray] = {}
    described = _packed(result, "", arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # its entries are of 1980, whatever the time
    write_atomically(folder / ARRAYS, lambda path: path.write_bytes(buffer.getvalue()))
    write_text(folder / TABLE, csv_table(result))
    content = {"page": page, "made_from": made_from, "result": described}
    write_json(folder / DESCRIPTION, content)


def write_page(folder: Path, page: Mapping[str, Any]) -> None:
    """Replace what pages say of a result that is there."""
    content = read_object(folder / DESCRIPTION) or {}
    if content.get("page") != json.loads(json.dumps(page)):
        write_json(folder / DESCRIPTION, {**content, "page": page})


def read_result(folder: Path) -> tuple[Result, dict[str, Any]]:
    """What `write_result` wrote: the result, and what it was made from.

    Raises:
        UserError: a file is missing or damaged.
    """
    remedy = "compute=true makes it again"
    described = read_object(folder / DESCRIPTION)
    if described is None:
        raise UserError(f"{folder / DESCRIPTION}: found no file; {remedy}")
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _unpacked(Result, described["result"], arrays), described["made_from"]
    except FileNotFoundError as error:
        raise UserError(f"{folder / ARRAYS}: found no file; {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{folder / ARRAYS}: cannot be read ({reason}); {remedy}") from error


def is_current(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a folder holds a whole result that was made from just this."""
    try:
        return read_result(folder)[1] == json.loads(json.dumps(made_from))
    except UserError:
        return False


# Packing: a dataclass becomes an object, an array its name among the arrays.


def _packed(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Result | Panel | Series):
        return {
            each.name: _packed(found, f"{name}{each.name}/", arrays)
            for each in fields(value)
            if not _is_default(found := getattr(value, each.name), each)
        }
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"{name}: an array of objects, which could not be read again safely")
        arrays[name.rstrip("/")] = value
        return {"array": name.rstrip("/")}
    if isinstance(value, Mapping):
        return {"map": [[k, _packed(v, f"{name}{k}/", arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(each, f"{name}{place}/", arrays) for place, each in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such number
    return value


def _is_default(value: Any, field: Any) -> bool:
    if field.default is not MISSING:
        return type(value) is type(field.default) and value == field.default
    return isinstance(value, Mapping) and not value


KINDS = {"panels": Panel, "series": Series}


def _unpacked(kind: type, node: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    values = {}
    for key, value in node.items():
        inner = KINDS.get(key)
        if inner is not None and isinstance(value, dict):
            values[key] = {name: _unpacked(inner, each, arrays) for name, each in value["map"]}
        elif inner is not None:
            values[key] = tuple(_unpacked(inner, each, arrays) for each in value)
        else:
            values[key] = _value(value, arrays)
    return kind(**values)


def _value(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_value(each, arrays) for each in value)
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        if "float" in value:
            return float(value["float"])
        return {key: _value(each, arrays) for key, each in value["map"]}
    return value


# The table


def csv_table(result: Result) -> str:
    """Every number drawn, one point a row; the mean of seeds has an empty ``seed``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, panel in result.panels.items():
        for row in _rows(panel):
            writer.writerow([csv_cell(key), *map(csv_cell, row)])
    return out.getvalue()


def _rows(panel: Panel) -> Iterator[list[Any]]:
    for series in panel.series:
        name = series.label or series.name
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            more = (series.low, series.high, series.low2, series.high2, series.color)
            cells = [_cell(None if each is None else each[i]) for each in more]
            text = series.texts[i] if series.texts else ""
            yield [name, "", _cell(x), _cell(y), *cells, text]
        for seed, values in series.by_seed.items():
            for x, y in zip(series.x, values, strict=True):
                yield [name, seed, _cell(x), _cell(y), *NONE, "", ""]
    if panel.surface is not None:
        across, up, values = panel.surface
        for i, y in enumerate(up):
            for j, x in enumerate(across):
                yield ["surface", "", _cell(x), _cell(y), *NONE, _cell(values[i, j]), ""]
    for place, text in enumerate(panel.captions):
        yield ["pictures", "", place, "", *NONE, "", text]


def _cell(value: Any) -> Any:
    """A number with as many digits as it has, ``""`` for none."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, np.floating):
        # Numbers, not texts: a text that begins with a minus is a formula to a spreadsheet.
        return float(f"{value:.9g}") if value.dtype.itemsize < 8 else float(value)
    return value.item() if isinstance(value, np.generic) else value
