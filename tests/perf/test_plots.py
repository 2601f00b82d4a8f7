import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from perf import plots  # after the check for it


def layer(name: str, own: float, carried: float = 1e-7, leaves: bool = False, note: str = "") -> dict[str, Any]:
    return {"name": name, "own": own, "carried": carried, "own_limit": 3e-5, "leaves": leaves, "note": note}


def test_the_layer_that_leaves_is_named_at_its_place() -> None:
    layers = [layer(f"backbone.{i}", 1e-7) for i in range(6)] + [layer(f"decoder.{i}", 0.0) for i in range(4)]
    layers[3] = layer("backbone.3", 1e-2, leaves=True)
    figure = plots.layer_errors(layers, "title")
    (axes,) = figure.axes
    note: Any = axes.texts[0]
    assert len(axes.texts) == 1
    assert (note.get_text(), note.xy) == ("backbone.3", (3, 1e-2))
    labels = [line.get_label() for line in axes.lines]
    assert {"carried", "own", "the own one may be", "leaves"} <= set(labels)
    assert plots.svg(figure) == plots.svg(plots.layer_errors(layers, "title")), "the same text again"


def test_what_is_not_comparable_or_no_number_does_not_break_the_curve() -> None:
    layers = [layer("a.0", 1e-7), layer("a.1", math.inf, math.inf, leaves=True), layer("b", 9.0, note="not known")]
    figure = plots.layer_errors(layers, "title")
    (axes,) = figure.axes
    own = next(line for line in axes.lines if line.get_label() == "own")
    assert list(own.get_xdata()) == [0, 1], "what is not comparable has no point"
    assert all(math.isfinite(value) for value in own.get_ydata())
    assert "<svg" in plots.svg(figure)


def test_a_plot_that_takes_long_on_a_busy_machine_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count(0.0, 9.0)
    monkeypatch.setattr("matplotlib.legend.time", SimpleNamespace(perf_counter=lambda: next(looks)))
    assert "<svg" in plots.svg(plots.layer_errors([layer("a", 1e-7), layer("b", 2e-7)], "title"))
    assert next(looks) > 9.0, "it has looked"


def test_layers_that_agree_have_no_mark() -> None:
    (axes,) = plots.layer_errors([layer("a", 1e-7), layer("b", 1e-7)], "title").axes
    assert "leaves" not in [line.get_label() for line in axes.lines]
    assert not axes.texts
