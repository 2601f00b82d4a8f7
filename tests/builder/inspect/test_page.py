"""The page in a real browser: drawn, folded, searched and clicked, with a few parts and with three thousand."""

import json
import re

import pytest

from builder.inspect.anatomy import Anatomy, Part
from builder.inspect.page import to_page
from tests.browser import run_page

KINDS = ("Conv", "MatMul", "Add", "Softmax", "Reshape")


def network(layers, itself=20):
    """A detector of a backbone, an encoder of `layers` layers of ten parts each, and parts of its own."""
    parts, before = [], "images"

    def add(kind, module, ms=0.01):
        nonlocal before
        name = f"node_{len(parts)}"
        parts.append(
            Part(name, kind, module, (before,), (f"t{len(parts)}",), ("float32 1x8",), "float32", 64, 1000, ms)
        )
        before = f"t{len(parts) - 1}"

    for _ in range(itself):
        add("Cast", "")
    add("Conv", "backbone.stem.conv", 3.0)
    for layer in range(layers):
        for i in range(10):
            add(KINDS[i % len(KINDS)], f"encoder.layers.{layer}.{'attn' if i < 6 else 'ffn'}")
    add("TopK", "head")
    return Anatomy(
        "onnx", "A <small> one & more", "model.onnx", 12345, {"torch": "2.13"}, ("images",), (before,), tuple(parts),
        {"weights": 640}, 4.5, notes=("a note </script>",),
    )  # fmt: skip  # in the order of the fields


def page(folder, anatomy, script=""):
    path = folder / "page.html"
    path.write_text(to_page(anatomy).replace("</body>", f"<script>{{{script}}}</script></body>"), encoding="utf-8")
    return path


def data(dom, name):
    found = re.search(rf'<html[^>]* data-{name}="([^"]*)"', dom)
    return found and found[1]


def boxes(dom):
    return re.findall(r'<rect[^>]* class="box[^"]*"[^>]* data-item="([^"]*)"', dom)


def test_the_page_holds_all_and_asks_for_nothing():
    text = to_page(network(2))
    assert "<title>A &lt;small&gt; one &amp; more</title>" in text
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest|import\(""", text)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG's elements, which nobody looks up"
    content = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert content["notes"] == ["a note </script>"]


def test_a_page_opens_folded(tmp_path):
    dom = run_page(page(tmp_path, network(3)), "--dump-dom")
    assert data(dom, "error") is None
    assert set(boxes(dom)) == {".(itself)", "backbone.stem.conv", "encoder.layers", "head"}
    assert "a note &lt;/script&gt;" in dom
    assert ">3.51 ms<" in dom, "the sum of all parts is in the table"


def test_a_page_is_opened_coloured_searched_and_read(tmp_path):
    script = """
    const click = (name) => document.querySelector(`rect[data-item="${name}"]`).dispatchEvent(new MouseEvent("click"));
    click("encoder.layers"); click("encoder.layers.1"); click("encoder.layers.1.attn");
    document.documentElement.dataset.unfolded = document.documentElement.dataset.shown;
    const field = document.getElementById("search");
    field.value = "topk"; field.dispatchEvent(new Event("input"));
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
    document.documentElement.dataset.topk = document.getElementById("details").textContent;
    click("node_31");
    document.documentElement.dataset.part = document.getElementById("details").textContent;
    document.querySelector("#details .link").dispatchEvent(new MouseEvent("click"));
    document.documentElement.dataset.before = document.querySelector("#details h2").textContent;
    const colours = () => new Set([...document.querySelectorAll("rect.box:not(.open)")].map((each) => each.getAttribute("fill"))).size;
    for (const mode of ["kind", "type", "time", "weights"]) {
      const choice = document.getElementById("colour");
      choice.value = mode; choice.dispatchEvent(new Event("change"));
      document.documentElement.dataset["colours" + mode] = colours();
    }
    const zoom = Number(document.documentElement.dataset.zoom);
    document.getElementById("in").click();
    document.documentElement.dataset.zoomed = Number(document.documentElement.dataset.zoom) / zoom;
    document.getElementById("graph").dispatchEvent(new WheelEvent("wheel", { deltaY: 100, clientX: 9, clientY: 9, cancelable: true }));
    const graph = document.getElementById("graph"), at = () => document.getElementById("world").getAttribute("transform");
    const former = at();
    graph.dispatchEvent(new PointerEvent("pointerdown", { clientX: 100, clientY: 100 }));
    window.dispatchEvent(new PointerEvent("pointermove", { clientX: 160, clientY: 130 }));
    document.documentElement.dataset.panned = former !== at();
    document.getElementById("fold").click();
    document.documentElement.dataset.folded = document.documentElement.dataset.shown;
    """  # noqa: E501  # a program of another language
    dom = run_page(page(tmp_path, network(3), script), "--dump-dom")
    assert data(dom, "error") is None
    assert data(dom, "unfolded") == str(3 + 2 + 1 + 6), "three others, two layers, ffn and six parts of attn"
    assert data(dom, "found") == "1"
    assert "kindTopK" in data(dom, "topk")
    assert "moduleencoder.layers.1.attn" in data(dom, "part")
    assert "reads" in data(dom, "part")
    assert data(dom, "before") == "node_30"
    assert all(int(data(dom, f"colours{mode}")) > 1 for mode in ("kind", "type", "time"))
    assert float(data(dom, "zoomed")) == pytest.approx(1.3)
    assert data(dom, "panned") == "true"
    assert data(dom, "folded") == "4"


def test_three_thousand_parts_are_drawn_folded_and_all_at_once(tmp_path):
    anatomy = network(300)
    path = page(tmp_path, anatomy)
    dom = run_page(path, "--dump-dom")
    assert data(dom, "error") is None
    assert int(data(dom, "shown")) == 4
    dom = run_page(path, "--dump-dom", fragment="#open=all&colour=kind&search=softmax")
    assert data(dom, "error") is None
    assert int(data(dom, "shown")) == len(anatomy.parts) == len(boxes(dom))
    assert int(data(dom, "edges")) == len(anatomy.parts) - 1
    assert data(dom, "found") == "600"


def test_a_page_of_no_parts_opens(tmp_path):
    empty = Anatomy("torch", "empty", "model.pt2", 1, {}, (), (), ())
    dom = run_page(page(tmp_path, empty), "--dump-dom")
    assert data(dom, "error") is None
    assert data(dom, "shown") == "0"


def test_the_page_is_not_blank(tmp_path):
    from PIL import Image

    run_page(page(tmp_path, network(3)), f"--screenshot={tmp_path / 'page.png'}", fragment="#open=all&colour=kind")
    with Image.open(tmp_path / "page.png") as picture:
        colours = picture.convert("RGB").getcolors(2**20)
        assert picture.size == (1400, 900)
    assert colours is None or len(colours) > 50
