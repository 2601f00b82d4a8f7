"""Draw docs/web.png, the page of `codetr web` with the demo's detector, with a real Chromium.

    python docs/web_picture.py runs/demo/repository

The repository is that of `codetr demo`. The latency that the picture shows is this machine's.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tests' browser

from demo import SAMPLE_IMAGE  # noqa: E402  # by the path
from serving.launch import running_server  # noqa: E402
from tests.chromium import Chromium, chromium  # noqa: E402

WIDTH, HEIGHT = 820, 650
WARM = 3  # pictures before the one that is seen


def main(repository: Path) -> None:
    """Serve, show and write."""
    with running_server(repository) as server, tempfile.TemporaryDirectory() as profile:
        code = "from codetr.cli import main; main()"
        command = [sys.executable, "-c", code, "web", "--port", "0", "--url", server.grpc_url]
        page = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            assert page.stderr is not None
            address = page.stderr.readline().split("the page is at ")[1].split(";")[0]
            with chromium(Path(profile)) as browser:
                picture = Image.open(io.BytesIO(shown(browser, address)))
        finally:
            page.terminate()
            page.wait()
    colours = picture.convert("RGB").quantize(255, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    colours.save(ROOT / "docs/web.png", optimize=True)


def shown(browser: Chromium, address: str) -> bytes:
    """Return the page after a few pictures, as PNG."""
    browser.screen(WIDTH, HEIGHT)
    browser.open(address)
    browser.until("document.querySelector('#dot.good') !== null")
    for number in range(WARM + 1):
        browser.drop([SAMPLE_IMAGE])
        browser.until("document.querySelectorAll('.box').length")
        if number < WARM:
            browser.click("article [data-do=remove]")
    browser.run("document.activeElement.blur(); document.getElementById('message').textContent = ''; scrollTo(0, 0)")
    browser.point(1, 1)
    time.sleep(3)  # until the state at the top is that after the last picture
    return browser.screenshot()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
