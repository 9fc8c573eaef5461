"""Figures: the same bytes on a re-run, the data beside the picture, labels that can be read."""

import hashlib
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cptlab import figures
from cptlab.errors import ConfigError
from cptlab.figures.style import _luminance, _spread, text_color

MAKE = """
import pandas as pd
from matplotlib.figure import Figure
from cptlab import figures
figures.style.use()
fig = Figure()
ax = fig.add_subplot()
x = [1e5, 1e6, 1e7]
figures.band(ax, x, [3, 2, 1], [2.9, 1.9, 0.9], [3.1, 2.1, 1.1], "C0", "continual")
ax.plot(x, [4, 3, 2], marker="o", label="scratch")
ax.set(xscale="log", xlabel="tokens", ylabel="validation loss (nats a token)")
figures.label_ends(ax)
data = pd.DataFrame({"tokens": [100000, 1000000], "loss_nats": [3.123456789012, None], "arm": ["b", "a"]})
figures.save(fig, "loss", data, "02_cpt_loss_curves", "laptop", ["r2", "r1", "r2"], "Loss against tokens < 1e8.")
"""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_FIGURES", str(tmp_path / "figures"))
    with matplotlib.rc_context():
        yield tmp_path / "figures"


def test_save_writes_four_files_with_their_origin(places):
    exec(MAKE, {})
    assert sorted(path.name for path in places.iterdir()) == ["loss.csv", "loss.json", "loss.png", "loss.svg"]
    assert (places / "loss.csv").read_text() == "tokens,loss_nats,arm\n100000,3.1234568,b\n1000000,,a\n"
    origin = json.loads((places / "loss.json").read_text())
    assert origin["runs"] == ["r1", "r2"]
    assert origin["csv_sha256"] == hashlib.sha256((places / "loss.csv").read_bytes()).hexdigest()
    assert set(origin) == {"name", "notebook", "profile", "caption", "runs", "csv_sha256", "cptlab"}
    svg = (places / "loss.svg").read_text()
    assert "<dc:date>" not in svg and "<text" not in svg and "Loss against tokens &lt; 1e8." in svg
    assert (places / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_another_process_writes_the_same_bytes(places, tmp_path):
    exec(MAKE, {})
    again = tmp_path / "again"
    env = os.environ | {"CPTLAB_FIGURES": str(again), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", MAKE], check=True, env=env)
    for path in places.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_saving_twice_gives_the_same_bytes(places):
    names: dict = {}
    exec(MAKE, names)
    first = {path.name: path.read_bytes() for path in places.iterdir()}
    names["fig"].draw_without_rendering()
    figures.save(names["fig"], "loss", names["data"], "02_cpt_loss_curves", "laptop", ["r1", "r2"], "Loss against tokens < 1e8.")
    assert names["fig"].get_layout_engine() is not None
    assert first == {path.name: path.read_bytes() for path in places.iterdir()}


def test_panels_and_colour_bars_settle_too(places):
    figures.style.use()
    fig = Figure()
    axes = fig.subplots(1, 2)
    fig.colorbar(axes[0].imshow([[1, 2], [3, 4]]), ax=axes)
    axes[1].plot([1e12, 1e13], [3, 2])
    axes[1].set(xscale="log", xlabel="flops", title="a title")
    saved = []
    for _ in range(2):
        figures.save(fig, "panels", pd.DataFrame({"a": [1]}), "02", "laptop", [], "")
        saved.append((places / "panels.svg").read_bytes())
    assert saved[0] == saved[1]


@pytest.mark.parametrize("empty", ["nothing", "nan", "level", "image"])
def test_axes_without_a_finite_number_are_refused(places, empty):
    fig = Figure()
    left, right = fig.subplots(1, 2)
    left.plot([1, 2], [3, 4])
    right.set(title="Loss on Franch")
    if empty == "nan":
        right.plot([1, 2], [np.nan, np.nan])
    elif empty == "level":
        right.axhline(1)
    elif empty == "image":
        right.imshow([[np.nan, np.nan]])
    with pytest.raises(ConfigError, match="figure 'a': the axes 'Loss on Franch' show no finite number"):
        figures.save(fig, "a", pd.DataFrame({"a": [1]}), "02", "laptop", [], "")
    assert not list(places.glob("*"))
    right.set_axis_off()  # room for a legend
    figures.save(fig, "a", pd.DataFrame({"a": [1]}), "02", "laptop", [], "")


def test_small_multiples_draw_a_line_an_arm_in_each_panel():
    rows = [(arm, lang, x, x + (arm == "b"), 0, 9) for arm in "ab" for lang in ("fr", "zh") for x in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["arm", "language", "tokens", "loss", "low", "high"])
    options = {"panel": "language", "line": "arm", "colors": {"a": "blue", "b": "#111111"}}
    fig = figures.small_multiples(table, "tokens", "loss", **options, titles={"zh": "Chinese", "fr": "French"}, labels="ends")
    assert [ax.get_title("left") for ax in fig.axes] == ["Chinese", "French"]
    for ax in fig.axes:
        assert [(line.get_color(), line.get_ydata().tolist()) for line in ax.lines] == [("#0072B2", [1, 2, 3]), ("#111111", [2, 3, 4])]
        assert len(ax.collections) == 2 and {text.get_text() for text in ax.texts} == {"a", "b"}
    ticks = figures.small_multiples(table.assign(tokens=table["tokens"] * 1e5), "tokens", "loss", **options, at_values=True, xscale="log")
    assert [label.get_text() for label in ticks.axes[0].get_xticklabels()] == ["100k", "200k", "300k"]
    with pytest.raises(ConfigError, match="arm 'b' has no colour"):
        figures.small_multiples(table, "tokens", "loss", **options | {"colors": {"a": "blue"}})
    with pytest.raises(ConfigError, match="no column 'flops'"):
        figures.small_multiples(table, "flops", "loss", **options)


def test_named_index_is_kept_and_another_dropped(places):
    fig = Figure()
    table = pd.DataFrame({"size": ["s", "m"], "loss": [1.0, 2.0]})
    figures.save(fig, "a", table.set_index("size"), "02", "laptop", [], "")
    assert (places / "a.csv").read_text() == "size,loss\ns,1\nm,2\n"
    figures.save(fig, "a", table[table["loss"] > 1], "02", "laptop", [], "")
    assert (places / "a.csv").read_text() == "size,loss\nm,2\n"


def test_bad_input_is_refused_before_anything_is_written(places):
    fig, table = Figure(), pd.DataFrame({"a": [1]})
    with pytest.raises(ConfigError, match="file name"):
        figures.save(fig, "../x", table, "02", "laptop", [], "")
    with pytest.raises(ConfigError, match="empty"):
        figures.save(fig, "x", table.iloc[:0], "02", "laptop", [], "")
    with pytest.raises(ConfigError, match="same name: a"):
        figures.save(fig, "x", pd.concat([table, table], axis=1), "02", "laptop", [], "")
    assert not places.exists()


def test_style_is_applied():
    figures.style.use()
    assert matplotlib.rcParams["svg.fonttype"] == "path"
    assert matplotlib.rcParams["svg.hashsalt"] == "cptlab"
    assert not matplotlib.rcParams["axes.spines.top"]
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    assert [color.lstrip("#") for color in cycle] == [color.lstrip("#") for color in figures.style.COLORS.values()]


def test_size_colors_run_from_light_to_dark():
    for n in (1, 2, 6):
        light = [_luminance(np.array(matplotlib.colors.to_rgb(color))) for color in figures.size_colors(n)]
        assert len(set(light)) == n and light == sorted(light, reverse=True)
    with pytest.raises(ConfigError):
        figures.size_colors(0)


def test_text_is_dark_enough_to_read():
    for color in figures.style.COLORS.values():
        rgb = np.array(matplotlib.colors.to_rgb(text_color(color)))
        assert 1.05 / (_luminance(rgb) + 0.05) >= 4.45
    assert text_color("#0072B2") == "#0072b2"


def test_band_draws_a_line_and_a_band_only_where_bounds_exist():
    ax = Figure().add_subplot()
    line = figures.band(ax, [1, 2], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5], "C0", "arm", linestyle="--")
    assert line.get_label() == "arm" and line.get_linestyle() == "--" and len(ax.collections) == 1
    figures.band(ax, [1, 2], [1.0, 2.0], [np.nan] * 2, [np.nan] * 2, "C1")
    assert len(ax.collections) == 1 and len(ax.lines) == 2


def test_direct_label_sits_beside_its_point():
    ax = Figure().add_subplot()
    label = figures.direct_label(ax, 1.0, 2.0, "French", "#0072B2")
    assert label.xy == (1.0, 2.0) and label.get_text() == "French" and label.get_ha() == "left"
    assert figures.direct_label(ax, 1.0, 2.0, "left", "C0", dx=-4).get_ha() == "right"


def test_label_ends_keeps_labels_apart_and_skips_unlabelled_lines():
    figures.style.use()
    fig = Figure()
    ax = fig.add_subplot()
    for offset, name in ((0.0, "a"), (0.001, "b"), (1.0, "c")):
        ax.plot([1, 2, 3], [0, offset, np.nan if name == "c" else offset], label=name)
    ax.plot([1, 2], [0, 0])
    labels = figures.label_ends(ax)
    assert [label.get_text() for label in labels] == ["a", "b", "c"]
    assert labels[2].xy == (2.0, 1.0)
    fig.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    assert boxes[0].y1 < boxes[1].y1 and not boxes[0].overlaps(boxes[1])


def test_spread_moves_no_more_than_it_must():
    assert _spread(np.array([0.0, 5.0]), 2.0).tolist() == [0.0, 5.0]
    assert _spread(np.array([1.0, 0.0, 10.0]), 2.0).tolist() == pytest.approx([1.5, -0.5, 10.0])
    assert _spread(np.array([3.0, 3.0, 3.0]), 1.0).tolist() == pytest.approx([2.0, 3.0, 4.0])


def test_points_stand_over_their_names():
    ax = Figure().add_subplot()
    figures.panels.points(ax, ["a", "b"], [1.0, 2.0], [0.5, 2.0], [1.5, 3.0], "C0")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"] and ax.get_xlim() == (-0.5, 1.5)
    ends = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert ends == [[0.5, 1.5], [2.0, 3.0]]


def test_upright_is_hollow_when_not_sure_and_spans_the_height_without_bounds():
    ax = Figure().add_subplot()
    figures.panels.upright(ax, 0, 1.0, 0.5, 1.5, "C0")
    figures.panels.upright(ax, 1, 1.0, np.nan, np.nan, "C0", sure=False)
    solid, first, whole, _, second = ax.lines
    assert solid.get_linestyle() == "-" and list(solid.get_ydata()) == [0.5, 1.5]
    assert first.get_markerfacecolor() == "C0" and second.get_markerfacecolor() == "white"
    assert whole.get_linestyle() == ":" and list(whole.get_ydata()) == [0, 1]  # of the height


def test_labelled_points():
    ax = Figure().add_subplot()
    rows = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0], "name": ["one", "", "three"]})
    figures.panels.labelled(ax, rows, "x", "y", "name", "C0", error=0.1, places={"three": (-9, 0)})
    assert [(label.get_text(), label.get_ha()) for label in ax.texts] == [("one", "left"), ("three", "right")]
    assert len(ax.collections) == 2  # bars both ways
    figures.panels.labelled(ax, rows[:0], "x", "y", "name", "C0")  # no rows, no labels
    assert len(ax.texts) == 2


def test_reported_is_a_band_with_its_text():
    ax = Figure().add_subplot()
    figures.panels.reported(ax, 0.25, 0.5, 1.0, 0.3)
    assert [label.get_text() for label in ax.texts] == ["what the work reports"]
    assert ax.patches[0].get_extents().height > 0


def test_refused_axes_are_named_by_a_title_at_the_left(places):
    fig = Figure()
    fig.subplots().set_title("Loss on Franch", loc="left")  # where the style puts it
    with pytest.raises(ConfigError, match="the axes 'Loss on Franch' show no finite number"):
        figures.save(fig, "a", pd.DataFrame({"a": [1]}), "02", "laptop", [], "")
