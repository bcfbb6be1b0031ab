"""Names and messages of others do nothing in a terminal, a spreadsheet, a page or a document."""

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from eakd.reproduce import compare, report, to_markdown
from eakd.reproduce.escaping import csv_cell, markdown_item, markdown_text, one_line, printable
from eakd.reproduce.table import Cell, load_table, make_table
from eakd.reproduce.table_report import summarise, write_report

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a|b`c`*d*~e~$f$",
    "[here](http://example.invalid)",
    "![x][y]",
    "[x]: http://example.invalid",
    "\x1b[2J\x1b]0;title\x07",
    "line\nbreak\r\n# heading",
    "=1+1",
    "@SUM(A1)",
    "\t=1",
    "\u202egnp.exe",
    "\x00\ud800",
    r"\input{/etc/passwd} % & # _ ^^41",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_harmless(text):
    assert one_line(text).isprintable()
    assert printable(text).replace("\n", "").isprintable()
    shown = markdown_text(text)
    assert "<" not in shown.replace("<br>", "") and "\n" not in shown
    for pair in ("](", "][", "]:"):
        assert pair not in shown.replace("\\]", "")
    for char in "|`*~$":
        assert char not in shown.replace(f"\\{char}", "")
    assert not csv_cell(text).startswith(tuple("=+-@\t\r\n"))


def test_what_needs_no_escape_stays():
    for text in ("ea_kd", "kd+matched", "τ′=2", "+0.13", "−0.2", "8 [seeds]", "Größe", "日本"):
        assert markdown_text(text) == text == printable(text)
    assert [csv_cell(value) for value in (-1, -0.5, None, True)] == [-1, -0.5, None, True]
    assert csv_cell("-1") == "'-1" and csv_cell("kd") == "kd" and csv_cell("a=b") == "a=b"
    assert markdown_item("# x") == r"\# x" and markdown_item("1. x") == r"1\. x"
    assert markdown_item("[ ] x") == r"\[ ] x" and markdown_item("kd, a-b") == "kd, a-b"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_comparison_of_hostile_runs(text, tmp_path):
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        summary = {"method": text, "seed": seed, "epochs": 1, "selection": text, "seconds": 1.0}
        summary |= {"m_last": 1.0, "m_best": 2.0, "precision": text * seed}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "config.json").write_text(json.dumps({"seed": seed, "distiller": {"name": text}}))
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "status.json").write_text(json.dumps({"state": "failed", "error": text}))
    lines = report(f"{tmp_path}/*", plot=str(tmp_path / "curves.png")).splitlines()
    assert all(line.isprintable() for line in lines)
    (row,) = [
        line for line in lines if line.endswith("| 2 | 1.00 ± 0.00 | 2.00 ± 0.00 | 1.0 ± 0.0 | – |")
    ]
    assert row.startswith(f"| {markdown_text(text)} |")
    # Columns: what a reader of Markdown sees, escaped bars apart.
    assert {line.replace("\\|", "").count("|") for line in lines if line.startswith("| ")} == {7}
    assert (tmp_path / "curves.png").is_file()
    assert to_markdown(compare([])).count("\n") == 1


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, sorted(name for name, _ in attrs)))


@pytest.mark.parametrize("text", HOSTILE)
def test_every_format_of_a_table_with_hostile_names(text, tmp_path):
    def files(name):
        definition = {**load_table("control"), "title": name, "quantity": name, "unit": name}
        of = make_table(definition, ["resnet8-resnet8"], ["kd"], ["uniform"])
        (cell,) = of.cells
        run = {"seed": 0, "epochs": 1, "selection": name, "seconds": 1.0, "recipe": name}
        run |= {"top1_last": 1.0, "top1_best": 1.0, "precision": name, "device": name}
        run |= {"environment": {name: name, "commit": name}, "directory": tmp_path / "run"}
        cell = Cell(cell.pair, name, cell.variant, (), {"top1": 2.0})
        of = type(of)(**{**vars(of), "cells": (cell,), "methods": (name,), "gains": ()})
        found = summarise(
            of, {cell: {0: run}}, tmp_path, wanted_seeds=[0, 1], states={cell: {1: name}},
            about={name: name},
        )  # fmt: skip
        write_report(found, tmp_path)
        return {p.suffix: p.read_text(encoding="utf-8") for p in tmp_path.glob("report.*")}

    harmless, hostile = files("kd"), files(text)
    tags = []
    for found in (harmless, hostile):
        parser = Tags()
        parser.feed(found[".html"])
        tags.append([tag for tag in parser.found if tag[0] != "br"])
        ElementTree.fromstring(found[".svg"])  # well-formed
    assert tags[0] == tags[1]
    for kind, found in hostile.items():
        assert all(line.isprintable() for line in found.splitlines()), kind
    for row in csv.reader(io.StringIO(hostile[".csv"], newline="")):
        assert not any(field.startswith(tuple("=+-@\t\r\n")) for field in row)
    assert hostile[".md"].count("\n") == harmless[".md"].count("\n")
    assert hostile[".tex"].count("\n") == harmless[".tex"].count("\n")
    assert r"\input" not in "".join(
        line for line in hostile[".tex"].splitlines() if not line.startswith("%")
    )
