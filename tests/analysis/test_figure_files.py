"""A result on disk: whole, readable again, the same bytes each time; and its pictures."""

import csv
import io
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from eakd.analysis.draw import draw
from eakd.analysis.page import caption, shown
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.statements import lines
from eakd.analysis.write import csv_table, is_current, read_result, write_result
from eakd.errors import UserError
from eakd.plotting import FORMATS, STYLE, image, new_figure, style


def everything():
    """A result with every attribute that there is, and every kind of series."""
    x = np.arange(5.0)
    styles = ("line", "bars", "steps", "points", "rings", "arrow", "reference")
    series = [
        Series(f"series {i}", x, x * i, x * i - 1, x * i + 1, f"label {i}", kind)
        for i, kind in enumerate(styles)
    ]
    series.append(Series("kd", x, x, texts=tuple("abcde"), by_seed={0: x, 3: x + 1}))
    series.append(Series("ea_kd", x, x, x - 2, x + 2, low2=x - 1, high2=x + 1))
    series.append(Series("cloud", x, x**2, style="points", color=np.array([0, 1, 2, 3, 4])))
    pictures = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    grid = np.linspace(0.1, 1, 4)
    return Result(
        panels={
            "lines": Panel("a title", "epoch", "loss, $nats$", tuple(series), x_limits=(0, 4.5)),
            "surface": Panel(surface=(grid, grid, np.outer(grid, grid)), levels=(0.2, 0.5)),
            "heat": Panel(surface=(grid, grid, np.outer(grid, grid)), surface_style="heat"),
            "pictures": Panel("pictures", pictures=pictures, captions=("one", "two\nlines")),
            "log": Panel(series=(Series("ea_kd", x + 1, 10.0**x),), log="xy", x_ticks={1.0: "one"}),
        },
        columns=2,
        numbers={"a.b": 0.1 + 0.2, "nothing": float("nan"), "much": float("inf"), "n": 3},
        tests={"a": 0.04},
        shows="It shows 5 < 6.",
        not_shows="Not that.",
        notes=("one", "two"),
        about={"seeds": [0, 3], "epochs": [12], "commit": "abc", "versions": {"eakd": "1"}},
        arrays={"raw": np.arange(6, dtype=np.float16).reshape(2, 3)},
    )


def same(a, b, at=""):
    """Whether two results are equal, arrays and their types included."""
    if isinstance(a, Result | Panel | Series):
        assert type(a) is type(b), at
        return all(same(getattr(a, k), getattr(b, k), f"{at}.{k}") for k in vars(a))
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        return all(same(a[k], b[k], f"{at}[{k!r}]") for k in a)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        return all(same(*each, at) for each in zip(a, b, strict=True))
    else:
        assert a == b or (a != a and b != b), f"{at}: {a!r} {b!r}"
    return True


def test_a_result_comes_back_whole(tmp_path):
    before = everything()
    write_result(tmp_path, before, {"code": "x"}, {})
    after, made_from = read_result(tmp_path)
    assert same(before, after) and made_from == {"code": "x"}
    assert is_current(tmp_path, {"code": "x"}) and not is_current(tmp_path, {"code": "y"})


def test_the_table_holds_every_number_drawn(tmp_path):
    rows = list(csv.DictReader(io.StringIO(csv_table(everything()))))
    one = [row for row in rows if (row["panel"], row["series"]) == ("lines", "label 1")]
    assert [(r["x"], r["y"], r["low"], r["high"]) for r in one][2] == ("2.0", "2.0", "1.0", "3.0")
    bands = [row for row in rows if (row["panel"], row["series"]) == ("lines", "ea_kd")]
    assert [r["low2"] for r in bands] == ["-1.0", "0.0", "1.0", "2.0", "3.0"]
    assert [r["high2"] for r in bands] == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    seeds = {row["seed"] for row in rows if row["series"] == "kd"}
    assert seeds == {"", "0", "3"}
    surface = [row for row in rows if row["panel"] == "surface"]
    assert len(surface) == 16 and float(surface[-1]["value"]) == pytest.approx(1)
    assert [row["text"] for row in rows if row["panel"] == "pictures"] == ["one", "two\nlines"]


def test_damage_is_told_in_one_line(tmp_path):
    write_result(tmp_path, everything(), {}, {})
    whole = (tmp_path / "data.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nonsense", whole[:200] + b"!" + whole[201:]):
        (tmp_path / "data.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"data.npz: cannot be read.*; compute=true") as caught:
            read_result(tmp_path)
        assert "\n" not in str(caught.value)
        assert not is_current(tmp_path, {})
    (tmp_path / "data.npz").unlink()
    with pytest.raises(UserError, match=r"data.npz: found no file; compute=true makes it again"):
        read_result(tmp_path)


def test_arrays_of_objects_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="an array of objects"):
        write_result(tmp_path, Result({}, arrays={"a": np.array([{}])}), {}, {})


def test_every_kind_of_panel_is_drawn_in_every_format():
    with style():
        figure = draw(everything())
        found = {kind: image(figure, kind, "title", "commit abc") for kind in FORMATS}
    assert found["png"].startswith(b"\x89PNG") and found["pdf"].startswith(b"%PDF")
    assert b"<svg" in found["svg"] and b"loss, $nats$" in found["svg"]  # text stays text
    assert figure.get_figwidth() == 6.75
    with style():
        assert draw(everything(), width=3.25).get_figwidth() == 3.25
        one = Result({"only": Panel(series=(Series("kd", np.arange(3.0), np.arange(3.0)),))})
        assert draw(one).get_figwidth() == 3.25


def test_the_same_result_is_the_same_picture_each_time():
    """The layout's solver adds in another order each time; its last digits must not be seen."""
    noise = np.random.default_rng(0)
    lines = {
        str(i): Panel(f"title {i}", "epoch", "nats", (Series("kd", np.arange(9.0), row),))
        for i, row in enumerate(noise.normal(size=(7, 9)))
    }
    photos = noise.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    pictures = {
        name: Panel(name, pictures=photos, captions=tuple(f"{name}\nH_T 0.{i}" for i in range(9)))
        for name in ("highest", "lowest")
    }
    with style():
        found = {image(draw(Result({**lines, **pictures}, columns=3)), "svg") for _ in range(6)}
    assert len(found) == 1


def test_pictures_are_legible_and_embed_their_fonts():
    with style():
        figure = draw(everything())
        content = image(figure, "pdf", "title", "commit abc")
        texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
        sizes = [text.get_fontsize() for text in texts if text.get_text()]
    assert min(sizes) >= 6
    streams = content + b"".join(_streams(content))
    assert b"/Type3" not in streams and b"/CIDFontType2" in streams  # type 42
    assert b"commit abc" in streams and b"CreationDate" not in streams


def _streams(content):
    for part in content.split(b"stream\n")[1:]:
        try:
            yield zlib.decompress(part)
        except zlib.error:
            continue


def test_one_seed_is_said_in_the_picture():
    one = Result(
        {"a": Panel(series=(Series("kd", np.arange(3.0), np.arange(3.0)),))}, about={"seeds": [0]}
    )
    with style():
        assert b"one seed" in image(draw(one), "svg")
        two = Result(one.panels, about={"seeds": [0, 1]})
        assert b"one seed" not in image(draw(two), "svg")


def test_a_method_and_its_ea_form_look_alike_but_for_dashes_and_filling():
    x = np.arange(3.0)
    names = ("kd", "ea_kd", "kd+matched")
    with style():
        axes = draw(Result({"a": Panel(series=tuple(Series(n, x, x) for n in names))})).axes[0]
        plain, ea, control = axes.get_lines()
        assert plain.get_color() == ea.get_color() != control.get_color()
        assert len({each.get_linestyle() for each in (plain, ea, control)}) == 3
        assert plain.get_markerfacecolor() == "white" and ea.get_markerfacecolor() == ea.get_color()


def test_no_setting_of_matplotlib_is_changed():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style():
        assert matplotlib.rcParams["font.size"] == STYLE["font.size"]
        image(new_figure(2, 2), "png")
    assert dict(matplotlib.rcParams) == before


def test_the_caption_names_seeds_commit_and_statements():
    result = everything()
    said = [
        {"text": "a number", "paper": 0.31, "ours": "a.b"},
        {"text": "less", "smaller": ["a.b", "n"], "test": "a"},
        {"text": "more", "larger": ["a.b", "n"], "test": "a"},
        {"text": "lost", "ours": "not.there"},
    ]
    found = lines(said, result)
    assert [each.holds for each in found] == ["same order", "yes (p = 0.04)", "no (p = 0.04)", "–"]
    text = caption(shown("9", "A title", result, found))
    assert "**Fig. 9. A title.** It shows 5 &lt; 6." in text
    assert "n = 2 (seeds 0, 3); 12 epochs" in text and "commit abc" in text
    assert "| a number | 0.31 | 0.3 | same order |" in text


def test_two_processes_write_the_same_bytes(trio, tmp_path):
    code = (
        "import sys; from eakd.composing import compose; from eakd.analysis.command import figure\n"
        "for name in '345':\n"
        " words = [f'figure={name}', f'runs={sys.argv[1]}/**', f'output_root={sys.argv[2]}']\n"
        " figure(compose(words, 'figure'))"
    )
    for name, seed in (("a", "1"), ("b", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", code, str(trio), str(tmp_path / name)]
        subprocess.run(words, check=True, env=environment, capture_output=True)
    first, second = (
        {path.relative_to(tmp_path / name): path for path in sorted((tmp_path / name).rglob("*.*"))}
        for name in "ab"
    )
    assert list(first) == list(second) and len(first) == 3 * 7 + 1
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name
