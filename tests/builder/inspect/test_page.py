"""The page in a real browser: drawn, folded, searched and clicked, with a few parts and with three thousand."""

import io
import json
import re

import pytest
from PIL import Image

from builder.inspect.anatomy import Anatomy, Part
from builder.inspect.page import to_page
from tests.chromium import chromium

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        running.screen(1400, 900)
        yield running


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of an engine, which asks for nothing but itself."""

    def open_page(anatomy, fragment=""):
        path = tmp_path / "page.html"
        path.write_text(to_page(anatomy), encoding="utf-8")
        browser.open("about:blank")
        browser.events.clear()
        browser.open(f"file://{path}{fragment}")
        browser.until("document.documentElement.dataset.zoom")
        asked = [told["request"]["url"] for name, told in browser.events if name == "Network.requestWillBeSent"]
        assert {url.split("#")[0] for url in asked} <= {f"file://{path}"}
        return browser

    return open_page


def data(browser, name):
    return browser.run(f"document.documentElement.dataset.{name}")


def boxes(browser):
    return browser.run("[...document.querySelectorAll('rect.box[data-item]')].map((each) => each.dataset.item)")


def click(browser, name):
    browser.click(f'rect[data-item="{name}"]')


def details(browser):
    return browser.run("document.getElementById('details').innerText")


def test_the_page_holds_all_and_asks_for_nothing():
    text = to_page(network(2))
    assert "<title>A &lt;small&gt; one &amp; more</title>" in text
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest|import\(""", text)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG's elements, which nobody looks up"
    content = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert content["notes"] == ["a note </script>"]


def test_a_page_opens_folded(show):
    browser = show(network(3))
    assert data(browser, "error") is None
    assert set(boxes(browser)) == {".(itself)", "backbone.stem.conv", "encoder.layers", "head"}
    text = browser.run("document.body.innerText")
    assert "a note </script>" in text
    assert "3.00 ms" in text
    assert browser.run("document.title") == "A <small> one & more"


def test_modules_unfold_and_parts_tell_what_they_are(show):
    browser = show(network(3))
    for name in ("encoder.layers", "encoder.layers.1", "encoder.layers.1.attn"):
        click(browser, name)
    assert len(boxes(browser)) == 3 + 2 + 1 + 6, "three others, two layers, ffn and six parts of attn"
    click(browser, "node_31")
    assert "encoder.layers.1.attn" in details(browser)
    assert "float32 1x8" in details(browser)
    browser.click("#details .link")
    assert browser.run("document.querySelector('#details h2').textContent") == "node_30", "which it reads"
    assert len(browser.run("[...document.querySelectorAll('.edge.hot')].map(() => 1)")) == 2
    browser.click("#fold")
    assert data(browser, "shown") == "4"
    assert data(browser, "error") is None


def test_parts_are_searched_and_shown(show):
    browser = show(network(3))
    browser.click("#search")
    browser.call("Input.insertText", text="topk")
    assert data(browser, "found") == "1"
    browser.press("Enter", 13)
    assert "TopK" in details(browser)
    assert browser.run("document.getElementById('hits').textContent") == "1 of 1"
    assert data(browser, "error") is None


def test_parts_are_coloured_in_four_ways(show):
    browser = show(network(3), "#open=all")
    fills = "new Set([...document.querySelectorAll('rect.box:not(.open)')].map((e) => e.getAttribute('fill'))).size"
    seen = {}
    for mode in ("kind", "type", "time", "weights"):
        browser.run(f"(() => {{ const c = document.getElementById('colour'); c.value = '{mode}';"
                    " c.dispatchEvent(new Event('change')); })()")  # fmt: skip  # a call
        seen[mode] = browser.run(fills)
        assert browser.run("document.getElementById('legend').children.length") > 0
    assert (seen["kind"], seen["type"], seen["weights"]) == (7, 1, 1)
    assert seen["time"] == 2, "one part takes nearly all of the time"


def test_the_graph_is_zoomed_and_moved(show):
    browser = show(network(3))
    zoom = float(data(browser, "zoom"))
    browser.click("#in")
    assert float(data(browser, "zoom")) == pytest.approx(1.3 * zoom)
    place = "document.getElementById('world').getAttribute('transform')"
    before = browser.run(place)
    mouse = {"button": "left", "clickCount": 1}
    browser.call("Input.dispatchMouseEvent", type="mousePressed", x=30, y=500, **mouse)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=130, y=560, buttons=1)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=130, y=560, **mouse)
    moved = browser.run(place)
    assert moved != before
    browser.point(150, 500)
    assert browser.run(place) == moved, "not after the button is let go"
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=500, deltaX=0, deltaY=200)
    browser.until(f"Number(document.documentElement.dataset.zoom) < {1.29 * zoom}")
    browser.click("#fit")
    assert float(data(browser, "zoom")) == pytest.approx(zoom)


def test_three_thousand_parts_are_drawn_folded_and_all_at_once(show):
    anatomy = network(300)
    assert data(show(anatomy), "shown") == "4"
    browser = show(anatomy, "#open=all&colour=kind&search=softmax")
    assert data(browser, "error") is None
    assert int(data(browser, "shown")) == len(anatomy.parts) == len(boxes(browser)) > 3000
    assert int(data(browser, "edges")) == len(anatomy.parts) - 1
    assert data(browser, "found") == "600"


def test_a_page_of_no_parts_opens(show):
    browser = show(Anatomy("torch", "empty", "model.pt2", 1, {}, (), (), ()))
    assert data(browser, "error") is None
    assert data(browser, "shown") == "0"


def test_the_page_is_not_blank(show):
    picture = show(network(3), "#open=all&colour=kind").screenshot()
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (1400, 900)
        assert len(image.convert("RGB").getcolors(2**21)) > 50
