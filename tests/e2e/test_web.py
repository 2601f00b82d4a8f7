"""The page of `codetr web` in a real Chromium, before real tritonservers: pictures in, boxes, JSON and states out."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from codetr_client import CoDetrClient
from codetr_client.exif import ORIENTATION
from serving.launch import LOOPBACK, ServerOptions, TritonServer, free_ports, start_server
from tests.chromium import WAIT, Chromium, chromium
from tests.clients import fakes
from tests.clients.fakes import FakeTriton
from tests.e2e.conftest import ENGINES
from tests.tiny_engine import MAX_DETECTIONS, write_tiny_repository

pytestmark = pytest.mark.server

LOWEST = 0.05  # what the page asks for unless it is told otherwise
# As a training config could name classes; shown as they are, and never taken for parts of the page.
HOSTILE = ("<img src=x onerror=\"document.title='owned'\">", "a\u202eb", *(f"class {k}" for k in range(2, 12)))


@contextmanager
def page(*urls: str) -> Iterator[str]:
    """Run `codetr web` before servers; yields where it is."""
    words = ["web", "--port", "0", *(word for url in urls for word in ("--url", url))]
    command = [sys.executable, "-c", "from codetr.cli import main; main()", *words]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        yield running.stderr.readline().split("the page is at ")[1].split(";")[0]
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=300)
        assert (running.returncode, said) == (0, "")
    finally:
        running.kill()
        running.wait()
        running.stderr.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def address(both: TritonServer) -> Iterator[str]:
    with page(both.grpc_url) as found:
        yield found


@pytest.fixture
def tab(browser: Chromium, address: str) -> Iterator[Chromium]:
    """A fresh page before `both`; what it asked for and complained of is looked at in the end."""
    browser.open("about:blank")  # a page before it may be asking its own server
    browser.events.clear()
    browser.screen(1000, 800)
    browser.open(address)
    browser.until("document.querySelector('#dot.good') !== null")
    yield browser
    check_events(browser, address)


def check_events(browser: Chromium, address: str) -> None:
    """Nothing was asked of any other place, no script failed, and no rule of the page's own was broken."""
    asked = {event["request"]["url"] for name, event in browser.events if name == "Network.requestWillBeSent"}
    assert [url for url in asked if not url.startswith((address, f"blob:{address}", "data:image/jpeg;base64,"))] == []
    complaints = [event["entry"] for name, event in browser.events if name == "Log.entryAdded"]
    assert [entry["text"] for entry in complaints if entry["source"] != "network"] == []
    assert [event for name, event in browser.events if name == "Runtime.exceptionThrown"] == []


def save(path: Path, size: tuple[int, int] = (300, 200), level: int = 255, orientation: int | None = None) -> Path:
    """Write a picture of one grey with a red left fifth."""
    image = Image.new("RGB", size, (level,) * 3)
    image.paste((255, 0, 0), (0, 0, size[0] // 5, size[1]))
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


def said(browser: Chromium, number: int = 1) -> str:
    """Wait for the answers to the first pictures, which come in any order; returns the last one's line."""
    lines = f"[...document.querySelectorAll('article .said')].slice(0, {number}).map((line) => line.textContent)"
    answered = "lines.every((line) => /boxes|[a-z] /.test(line) && !/waiting/.test(line))"
    return browser.until(f"((lines) => lines.length === {number} && {answered} && lines.at(-1))({lines})")


def boxes(browser: Chromium) -> list[dict[str, Any]]:
    """What is seen of the boxes of the first picture, relative to it: sides in 0..1, and the words."""
    script = """(() => {
        const whole = document.querySelector('article .stage').getBoundingClientRect();
        return [...document.querySelectorAll('article .box:not([hidden])')].map((box) => {
            const { left, top, right, bottom } = box.getBoundingClientRect();
            const x = (value) => (value - whole.left) / whole.width, y = (value) => (value - whole.top) / whole.height;
            return { box: [x(left), y(top), x(right), y(bottom)], words: box.textContent };
        });
    })()"""
    return browser.run(script)


def copied(browser: Chromium, address: str, button: str) -> Any:
    """Click a button that copies, and return what the clipboard holds."""
    browser.call("Browser.grantPermissions", origin=address.rstrip("/"), permissions=["clipboardReadWrite"])
    browser.click(f"article [data-do={button}]")
    browser.until("/is copied/.test(document.getElementById('message').textContent)")
    browser.run("document.getElementById('message').textContent = ''")
    return json.loads(browser.run("navigator.clipboard.readText()"))


def threshold(browser: Chromium, percent: int) -> None:
    """Move the slider with the keyboard, from either end."""
    browser.run("document.getElementById('threshold').focus()")
    browser.press("Home", 36)
    for _ in range(percent - round(LOWEST * 100)):
        browser.press("ArrowRight", 39)
    assert browser.run("document.getElementById('shown').textContent") == f"{percent} %"


def test_a_dropped_picture_gets_its_boxes(tab: Chromium, both: TritonServer, address: str, tmp_path: Path) -> None:
    path = save(tmp_path / "<b>street &amp; é.png")
    tab.drop([path])
    assert re.fullmatch(r"11 of 12 boxes, \d+ ms, 300×200 pixels", said(tab))
    with CoDetrClient(both.grpc_url) as client:
        expected = client.detect(path, LOWEST)
    assert len(expected) == MAX_DETECTIONS
    found = {each["words"]: each["box"] for each in boxes(tab)}
    for box, score, name in zip(expected.boxes, expected.scores, expected.names, strict=True):
        words = f"{name} {round(float(score) * 100)} %"
        if score >= 0.3:
            assert found.pop(words) == pytest.approx((box / [300, 200, 300, 200]).tolist(), abs=0.005), words
    assert not found
    assert tab.run("document.querySelector('article h2').textContent") == path.name

    threshold(tab, 60)
    kept = expected.above(0.6)
    assert len(boxes(tab)) == len(kept)
    document = copied(tab, address, "copy-json")
    image = {"file": path.name, "width": 300, "height": 200, "detections": kept.to_json()}
    assert document == {"score_threshold": 0.6, "images": [image]}
    coco = copied(tab, address, "copy-coco")
    assert coco["images"] == [{"id": 1, "file_name": path.name, "width": 300, "height": 200}]
    ids = {category["name"]: category["id"] for category in coco["categories"]}
    assert [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in coco["annotations"]] == (
        kept.to_coco(1, [ids[name] for name in ENGINES["codetr"][2]])
    )
    assert [row["id"] for row in coco["annotations"]] == list(range(1, len(kept) + 1))
    threshold(tab, 5)
    assert len(boxes(tab)) == MAX_DETECTIONS, "without asking again"
    asked = [event for name, event in tab.events if name == "Network.requestWillBeSent"]
    assert len([event for event in asked if "/api/detect" in event["request"]["url"]]) == 1


def test_the_other_model_answers_what_is_there(tab: Chromium, tmp_path: Path) -> None:
    tab.drop([save(tmp_path / "a.png")])
    said(tab)
    words = {each["words"] for each in boxes(tab)}
    shown = "[...document.getElementById('model').options].map((option) => option.textContent)"
    options = tab.until(f"((names) => names.length > 1 && names)({shown})")  # a list that came too late comes again
    assert options == sorted(ENGINES)
    tab.run("document.getElementById('model').focus()")
    tab.press("ArrowDown", 40)
    tab.until("!document.querySelector('article .box:not([hidden])')?.textContent.startsWith('class 0')"
              " && document.querySelectorAll('article .box').length")  # fmt: skip  # one expression
    assert {each["words"] for each in boxes(tab)} != words
    names = {each["words"].rsplit(" ", 2)[0] for each in boxes(tab)}
    assert names <= set(ENGINES["small"][2])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_turned_photograph_is_upright_under_its_boxes(tab: Chromium, tmp_path: Path, suffix: str) -> None:
    tab.drop([save(tmp_path / f"turned.{suffix}", orientation=6)])
    assert said(tab).endswith("200×300 pixels")
    script = """(() => {
        const image = document.querySelector('article img'), canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext('2d', { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const at = (x, y) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3);
        return [canvas.width, canvas.height, at(100, 20), at(100, 280)];
    })()"""
    tab.until("document.querySelector('article img').src.startsWith('data:') && "
              "document.querySelector('article img').complete")  # fmt: skip  # one expression
    width, height, above, below = tab.run(script)
    assert (width, height) == (200, 300)
    assert above == pytest.approx([255, 0, 0], abs=12), "the stored picture's left"
    assert below == pytest.approx([255, 255, 255], abs=12)
    assert boxes(tab)[0]["box"] == pytest.approx([0, 0, 0.4, 0.4], abs=0.006)


def test_pictures_that_only_the_browser_reads_are_sent_as_it_sees_them(tab: Chromium, tmp_path: Path) -> None:
    Image.new("L", (90, 60), 255).save(tmp_path / "a.gif")
    (tmp_path / "b.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60"/>')
    paths = [tmp_path / "a.gif", tmp_path / "b.svg"]
    if features.check("avif"):
        Image.new("RGB", (90, 60), "white").save(tmp_path / "c.avif")
        paths.append(tmp_path / "c.avif")
    tab.drop(paths)
    for number in range(1, len(paths) + 1):
        assert said(tab, number).endswith("90×60 pixels")


def test_pictures_of_all_kinds_at_once_and_what_is_none(tab: Chromium, tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 90), 0xFFFF, np.uint16)).save(tmp_path / "a.png")  # 16 bits
    Image.new("CMYK", (90, 60)).save(tmp_path / "b.jpg")
    Image.new("RGB", (9000, 6000), "white").save(tmp_path / "c.jpg")  # 54 megapixels
    Image.new("RGB", (90, 60), "white").save(tmp_path / "d.bmp")
    (tmp_path / "e.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "f.txt").write_text("no picture")
    (tmp_path / "g.jpg").write_bytes(b"")
    tab.drop(sorted(tmp_path.iterdir()))
    lines = [said(tab, number) for number in range(1, 8)]
    assert [line.split(", ")[-1] for line in lines[:4]] == [
        "90×60 pixels", "90×60 pixels", "9000×6000 pixels", "90×60 pixels",
    ]  # fmt: skip  # a row
    assert lines[4].endswith("damaged PNG image: it is cut short")
    assert lines[5] == "this is no picture that the server or this browser reads; JPEG, PNG, WebP and BMP always are"
    assert lines[6] == "the file is empty"
    classes = tab.run("[...document.querySelectorAll('.said')].map((line) => line.classList.contains('error'))")
    assert classes == [False] * 4 + [True] * 3


def test_pictures_are_chosen_and_pasted_too(tab: Chromium, tmp_path: Path) -> None:
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    tab.call("DOM.setFileInputFiles", nodeId=node, files=[str(save(tmp_path / "a.png")), str(save(tmp_path / "b.png"))])
    assert "boxes" in said(tab, 2)
    tab.run("""new Promise((resolve) => document.createElement('canvas').toBlob(resolve)).then((blob) => {
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([blob], 'image.png', { type: 'image/png' }));
        document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }));
    })""")
    assert "boxes" in said(tab, 3)


def test_the_page_keeps_so_many_pictures_and_says_what_it_leaves_out(tab: Chromium) -> None:
    tab.run("""(() => {
        const clipboardData = new DataTransfer();
        for (let number = 0; number < 103; number += 1) clipboardData.items.add(new File([], `${number}.png`));
        document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }));
    })()""")
    assert said(tab, 100) == "the file is empty"
    assert tab.run("document.querySelectorAll('article').length") == 100
    message = tab.run("document.getElementById('message').textContent")
    assert message == "Left out: 3 of 103, because this page keeps 100; remove some first."


def test_a_half_photograph_is_shown_as_far_as_it_goes(tab: Chromium, tmp_path: Path) -> None:
    whole = save(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    tab.run("(() => { const model = document.getElementById('model'); model.selectedIndex = 1;"
            " model.dispatchEvent(new Event('change')); })()")  # fmt: skip  # one expression
    tab.drop([tmp_path / "half.jpg"])
    assert said(tab).endswith("300×200 pixels"), "`small` accepts it"
    assert boxes(tab)[0]["box"] == pytest.approx([0, 0, 0.4, 0.4], abs=0.006)


def test_what_only_the_server_reads_has_its_boxes_on_nothing(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(b"BM, and what follows is known to the server alone")
    with fakes.http_server(FakeTriton()) as port, page(f"http://127.0.0.1:{port}") as found:
        browser.screen(1000, 800)
        browser.open(found)
        browser.until("document.querySelector('#dot.good') !== null")
        browser.drop([tmp_path / "a.bmp"])
        assert "1 of 1 boxes" in said(browser)
        browser.until("!document.querySelector('article .unseen').hidden")
        (box,) = boxes(browser)
        assert box["box"] == pytest.approx([1 / 30, 2 / 40, 1, 1], abs=0.006), "within the boxes' own extent"
        assert box["words"] == "dog 50 %"


def test_the_camera_gives_a_picture(tab: Chromium) -> None:
    tab.click("#camera")
    tab.until("!document.getElementById('take').disabled")
    tab.click("#take")
    assert "boxes" in said(tab)
    assert tab.run("document.querySelector('article h2').textContent") == "camera-1.jpg"
    assert tab.run("document.getElementById('video').srcObject") is None, "the camera is off again"


def test_a_box_under_the_mouse_is_shown_alone(tab: Chromium, tmp_path: Path) -> None:
    tab.drop([save(tmp_path / "a.png")])
    said(tab)
    tab.click("article h2")  # which brings it into view
    whole = "document.querySelector('article .stage').getBoundingClientRect()"
    left, top, width, height = tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({whole})")
    # 1 to 8 lie over the first place, 0 to 4 over the second: of equal ones the best, whichever was shown before
    for place, name in ((0.42, "class 1"), (0.2, "class 0"), (0.42, "class 1")):
        tab.point(left + width * place, top + height * place)
        tab.until(f"document.querySelector('.box.active')?.textContent.startsWith('{name} ')")
        assert tab.run("document.querySelectorAll('.box.active').length") == 1
        assert tab.run("document.querySelector('.list .active').textContent").startswith(name)
    tab.point(2, 2)
    tab.until("document.querySelectorAll('.active, .hovered').length === 0")


def test_keys_reach_everything_and_everything_has_a_name(tab: Chromium, tmp_path: Path) -> None:
    tab.drop([save(tmp_path / "a.png"), save(tmp_path / "b.png")])
    said(tab, 2)
    controls = "[...document.querySelectorAll('button, select, summary, input')]"
    wanted = tab.run(f"{controls}.filter((each) => each.checkVisibility() && !each.disabled).length")
    tab.run("document.body.focus()")
    seen: set[int] = set()
    for _ in range(wanted + 5):
        tab.press("Tab", 9)
        seen.add(tab.run(f"{controls}.indexOf(document.activeElement)"))
    assert len(seen - {-1}) == wanted
    tab.call("Accessibility.enable")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "slider", "image", "article", "list", "MenuListPopup")
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    found = [(role, name) for role, name in named if role in roles]
    assert {"Model", "Threshold", "Choose pictures", "Camera", "a.png", "Detections"} <= {name for _, name in found}
    assert [role for role, name in found if not name and role != "MenuListPopup"] == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_schemes(tab: Chromium, tmp_path: Path, dark: bool) -> None:
    tab.screen(360, 740, mobile=True, dark=dark)
    tab.drop([save(tmp_path / f"{'a' * 120}.png", (1200, 800))])
    said(tab)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    level = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))[5, 300]
    assert (level < 60) if dark else (level > 200)
    ratio = """(() => {
        const luma = (colour) => colour.match(/\\d+/g).slice(0, 3).map((each) => each / 255)
            .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
            .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
        const of = (selector, behind) => {
            const [a, b] = [getComputedStyle(document.querySelector(selector)).color,
                getComputedStyle(document.querySelector(behind)).backgroundColor].map(luma);
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        };
        return Math.min(of('body', 'body'), of('.said', 'article'), of('.primary', '.primary'));
    })()"""
    assert tab.run(ratio) >= 4.5, "what WCAG 2.2 asks for in 1.4.3"


def test_what_is_saved_is_what_is_copied(tab: Chromium, address: str, tmp_path: Path) -> None:
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
    tab.drop([save(tmp_path / "a.png")])
    said(tab)
    for form, name in (("json", "a.json"), ("coco", "a-coco.json")):
        tab.click(f"article [data-do=save-{form}]")
        file = tmp_path / "down" / name
        until = time.monotonic() + WAIT
        while not (file.is_file() and file.stat().st_size):
            assert time.monotonic() < until, name
            time.sleep(0.1)
        assert json.loads(file.read_text()) == copied(tab, address, f"copy-{form}")


def test_pictures_are_removed(tab: Chromium, tmp_path: Path) -> None:
    tab.drop([save(tmp_path / "a.png"), save(tmp_path / "b.png")])
    said(tab, 2)
    tab.click("article [data-do=remove]")
    assert tab.run("[...document.querySelectorAll('article h2')].map((each) => each.textContent)") == ["b.png"]


def test_a_server_that_is_killed_and_comes_back(browser: Chromium, both: TritonServer, tmp_path: Path) -> None:
    repository = write_tiny_repository(tmp_path / "repository", class_names=HOSTILE)
    options = ServerOptions(repository, LOOPBACK, *free_ports(3))
    first, second = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    server = start_server(options)
    try:
        server.wait_ready(120)
        browser.open("about:blank")
        with page(server.grpc_url, f"http://{both.http_url}") as found:
            browser.events.clear()
            browser.screen(1000, 800)
            browser.open(found)
            browser.until("document.querySelector('#dot.good') !== null")
            names = browser.until(
                "document.getElementById('model').options.length === 3 && "
                "[...document.getElementById('model').options].map((option) => option.textContent)"
            )
            assert names == [
                f"codetr at {server.grpc_url}",
                *(f"{name} at {both.http_url}" for name in sorted(ENGINES)),
            ]
            browser.drop([first])
            assert "boxes" in said(browser)
            words = [each["words"] for each in boxes(browser)]
            assert words[0].startswith(HOSTILE[0]), "as text"
            assert words[1].startswith("a\\u202eb "), "not turned"
            assert browser.run("document.title") == "codetr"
            server.tell_to_end(signal.SIGKILL)
            server.stop()
            browser.until("/no server answers grpc at .*refused/.test(document.getElementById('state').textContent)")
            browser.drop([second])
            assert "no server answers grpc" in said(browser, 2)
            write_tiny_repository(tmp_path / "new", class_names=tuple(f"thing {k}" for k in range(MAX_DETECTIONS)))
            server = start_server(replace(options, repository=tmp_path / "new"))
            server.wait_ready(120)
            browser.until("document.querySelectorAll('article')[1].querySelectorAll('.box').length")
            text = browser.run("document.querySelectorAll('article')[1].querySelector('.box').textContent")
            assert text.startswith("thing 0 "), "asked again by itself, with the class names of now"
            browser.until("document.querySelector('#dot.good') !== null")
            check_events(browser, found)
        browser.until("/own server does not answer/.test(document.getElementById('state').textContent)")
    finally:
        server.tell_to_end(signal.SIGKILL)
        server.stop()
