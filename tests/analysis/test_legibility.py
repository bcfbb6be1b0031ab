"""Pictures in which nothing hides anything else, whatever the names and however many."""

from itertools import combinations

import numpy as np
import pytest

from eakd.analysis.draw import draw
from eakd.analysis.result import Panel, Result, Series
from eakd.plotting import style

X = np.arange(1.0, 11.0)
LONG = "Kullback-Leibler divergence from the teacher at τ = 4 (nats)"


@pytest.fixture(autouse=True)
def in_our_style():
    with style():
        yield


def boxes(texts):
    """Of the texts that are seen."""
    return [text.get_window_extent() for text in texts if text.get_text().strip()]


def charts(figure):
    return [axes for axes in figure.axes if axes.get_gid() == "panel"]


def overlapping(found):
    """Pairs that cover each other by more than the edge of a letter."""
    return [
        (a, b)
        for a, b in combinations(found, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_long_names_of_axes_stay_out_of_other_panels(columns, count):
    panels = {
        str(i): Panel(
            "train\nof both", f"tenth of the samples by {LONG}", LONG,
            series=(Series("kd", X, X), Series("ea_kd", X, 2 * X)),
        )
        for i in range(count)
    }  # fmt: skip
    figure = draw(Result(panels, columns=columns))
    page = figure.bbox
    names = [t for a in charts(figure) for t in (a.title, a._left_title, a.xaxis.label)]
    names += [axes.yaxis.label for axes in charts(figure)]
    found = boxes(names) + [legend.get_window_extent() for legend in figure.legends]
    assert not overlapping(found)
    for box in found:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
    for axes in charts(figure):
        inside = axes.get_window_extent()
        assert not any(box.overlaps(inside) for box in found)
        assert inside.height > 0.8 * 100  # pixels, of 100 an inch


def clouds(count, rings="rings"):
    noise = np.random.default_rng(0)
    series = [
        Series(f"class {i}", *noise.normal(size=(2, 30)) + i, style="points") for i in range(count)
    ]
    return (*series, Series("highest", *noise.normal(size=(2, 9)), label=rings, style="rings"))


def test_a_legend_of_many_entries_hides_no_panel():
    line = Panel("(b)", series=(Series("teacher", X, X),))
    figure = draw(Result({"cloud": Panel(series=clouds(10), equal=True), "line": line}, columns=3))
    cloud = charts(figure)[0]
    assert cloud.get_legend() is None
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 11  # ten classes and the rings
    assert all(not box.overlaps(axes.get_window_extent()) for axes in charts(figure))
    assert cloud.get_window_extent().height > 100


def test_a_short_legend_of_one_panel_stays_in_it():
    bars = Panel(series=(Series("kd", X, X, style="bars"), Series("ea_kd", X, X, style="bars")))
    other = Panel(series=(Series("epoch 1", X, X), Series("epoch 2", X, -X)))
    figure = draw(Result({"a": bars, "b": other}, columns=2))
    assert not figure.legends
    assert [len(axes.get_legend().get_texts()) for axes in charts(figure)] == [2, 2]


def test_names_of_references_that_end_together_are_both_read():
    """As the teacher's curve and the diagonal of a reliability diagram do."""
    grid = np.linspace(0, 1, 11)
    series = (
        Series("kd", grid, grid**1.3),
        Series("teacher", grid, grid**1.1, style="reference"),
        Series("calibrated", grid, grid, style="reference"),
    )
    axes = charts(draw(Result({"a": Panel(series=series)})))[0]
    texts = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in texts} == {"teacher", "calibrated"}
    assert not overlapping(boxes(texts))
    inside = axes.get_window_extent()
    assert all(box.x0 >= inside.x0 - 1 and box.x1 <= inside.x1 + 1 for box in boxes(texts))


def test_the_name_of_a_reference_leaves_a_line_readable():
    """The reference lies just above a line for its last part: the name goes elsewhere."""
    series = (
        Series("kd", X, np.where(X > 6, 4.9, 0.0)),
        Series("limit", X, np.full(10, 5.0), style="reference"),
    )
    axes = charts(draw(Result({"a": Panel(series=series, y_limits=(-1, 5.2))})))[0]
    (text,) = [text for text in axes.texts if text.get_text()]
    box = text.get_window_extent()
    x, y = axes.transData.transform(np.stack([np.linspace(6.2, 10, 200), np.full(200, 4.9)], 1)).T
    assert not ((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)).any()


def test_texts_of_near_points_are_told_apart():
    x = np.array([1.0, 1.02, 1.04, 3.0])
    points = Series("a", x, np.ones(4), style="points", texts=("MLD", "DKD", "KD", "FCFD"))
    axes = charts(draw(Result({"a": Panel(series=(points,))})))[0]
    texts = [text for text in axes.texts if text.get_text()]
    assert len(texts) == 4 and not overlapping(boxes(texts))


@pytest.mark.parametrize(("low", "high"), [(1.2, 3.5), (2, 60), (0.011, 0.02), (1, 1e6)])
def test_a_short_logarithmic_axis_has_two_numbers(low, high):
    line = Series("kd", X, np.linspace(low, high, 10))
    figure = draw(Result({"a": Panel(series=(line,), log="y")}))
    axis = charts(figure)[0].yaxis
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    bottom, top = axis.get_view_interval()
    seen = [t.label1.get_text() for t in ticks if bottom <= t.get_loc() <= top]
    assert len([text for text in seen if text]) >= 2


def test_a_steep_surface_has_few_numbers():
    grid = np.linspace(-1, 1, 21)
    loss = 0.1 + 50 * (grid[:, None] ** 2 + grid**2)
    levels = tuple(np.arange(0.1, 10, 0.5))
    axes = charts(draw(Result({"a": Panel(surface=(grid, grid, loss), levels=levels)})))[0]
    texts = {text.get_text() for text in axes.texts if text.get_text()}
    assert 1 <= len(texts) <= 5


def test_a_plain_method_is_hollow_alone_too():
    for names in (("kd",), ("kd", "ea_kd"), ("dkd", "kd+matched")):
        series = tuple(Series(name, X, X) for name in names)
        line = charts(draw(Result({"a": Panel(series=series)})))[0].get_lines()[0]
        assert line.get_markerfacecolor() == "white" and line.get_linestyle() == "--"
