"""`codetr evaluate` on a live server, killed half-way: what it had is kept, and the figures are the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from codetr.cli import app
from codetr_client.client import CoDetrClient
from codetr_client.wire import Protocol
from demo.shapes.dataset import encode_jpeg
from demo.shapes.draw import generate
from perf.accuracy.detectors import built_variant, served_engine, server_setup
from perf.accuracy.identity import identity_of_server
from serving.errors import CodetrError
from serving.launch import TritonServer
from serving.manifest import manifest_path, read_manifest
from serving.versions import Choice, write_choice

pytestmark = pytest.mark.server

IMAGES, KILLED_AFTER = 80, 10
# Kills itself before it writes one more: from outside, a busy machine might let it come to its end.
KILLED = f"""
import itertools, os, signal
from perf.accuracy import collect

written, to_line = itertools.count(), collect._to_line

def to_line_or_death(*values):
    if next(written) == {KILLED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)
    return to_line(*values)

collect._to_line = to_line_or_death
from codetr.cli import main
main()
"""


@pytest.fixture(scope="module")
def dataset(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose truth is the server's own first answer, so that the AP is neither 0 nor 1."""
    folder = tmp_path_factory.mktemp("dataset")
    annotations: list[dict[str, Any]] = []
    images = []
    with CoDetrClient(server.grpc_url) as client:
        names = client.class_names()
        for i in range(IMAGES):
            jpeg = encode_jpeg(generate(5, i, (120, 160)).image)
            (folder / f"{i}.jpg").write_bytes(jpeg)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 120})
            found = client.detect(jpeg, score_threshold=0.0)
            x0, y0, x1, y1 = found.boxes[0].tolist()
            box = [x0, y0, x1 - x0, y1 - y0]
            annotation = {"id": i + 1, "image_id": i, "category_id": int(found.labels[0]) + 1, "bbox": box}
            annotations.append({**annotation, "area": box[2] * box[3], "iscrowd": 0})
    labels = range(max(len(names), 1 + max(a["category_id"] for a in annotations)))
    categories = [{"id": k + 1, "name": names[k] if names else f"class {k}"} for k in labels]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def command(server: TritonServer, dataset: Path, output: Path) -> list[str]:
    options = {
        "--annotations": dataset / "annotations.json",
        "--images": dataset,
        "--output": output,
        "--url": server.grpc_url,
        "--concurrency": 1,  # batches of one: the same arithmetic in every run
    }
    return ["evaluate", *(str(word) for pair in options.items() for word in pair)]


def finish(server: TritonServer, dataset: Path, output: Path) -> None:
    done = CliRunner().invoke(app, command(server, dataset, output), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def finished_images(output: Path) -> int:
    results = output / "results.jsonl"
    return max(0, results.read_bytes().count(b"\n") - 1) if results.exists() else 0


def test_killed_and_started_again_gives_the_same_figures(server: TritonServer, dataset: Path, tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    finish(server, dataset, uninterrupted)

    words = [sys.executable, "-c", KILLED, *command(server, dataset, killed)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    kept = finished_images(killed)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert kept == KILLED_AFTER

    lines = (killed / "results.jsonl").read_text(encoding="utf-8").splitlines()
    finish(server, dataset, killed)
    assert (killed / "results.jsonl").read_text(encoding="utf-8").splitlines()[: kept + 1] == lines[: kept + 1]
    assert finished_images(killed) == IMAGES  # none was asked for twice

    first, second = (json.loads((folder / "accuracy.json").read_text()) for folder in (uninterrupted, killed))
    assert 0.1 < first["ap"] < 1
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100", "classes", "images"):
        assert first[name] == second[name], name
    assert json.loads((uninterrupted / "detections.json").read_text()) == json.loads(
        (killed / "detections.json").read_text()
    )


def evaluate(server: TritonServer, annotations: Path, images: Path, output: Path) -> dict[str, Any]:
    """Return the figures of the first images."""
    words = ["--annotations", annotations, "--images", images, "--limit", 10]
    # An option that stands twice is what it is at last.
    done = CliRunner().invoke(app, [*command(server, images, output), *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {
        "figures": json.loads((output / "accuracy.json").read_text()),
        "rows": json.loads((output / "detections.json").read_text()),
        "said": done.output,
    }


def test_an_odd_annotation_file_has_the_same_ap_and_gets_its_own_ids_back(
    server: TritonServer, dataset: Path, tmp_path: Path
) -> None:
    whole = json.loads((dataset / "annotations.json").read_text())
    for each in whole["annotations"][::2]:
        each["bbox"][0] += each["bbox"][2] / 4  # an IoU of 0.6
    usual = tmp_path / "usual.json"
    usual.write_text(json.dumps(whole))
    for image in whole["images"]:
        image["id"] = f"image {image['id']}"
    for index, each in enumerate(whole["annotations"]):
        each.update(id=index // 2, image_id=f"image {each['image_id']}", category_id=each["category_id"] + 6)
    for category in whole["categories"]:
        category.update(id=category["id"] + 6, supercategory="all")
    whole["categories"].insert(0, {"id": 0, "name": "all", "supercategory": "none"})
    whole["annotations"].append({"image_id": "image 0", "category_id": 7, "bbox": []})
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(whole), encoding="utf-16")
    expected = evaluate(server, usual, dataset, tmp_path / "expected")
    found = evaluate(server, odd, dataset, tmp_path / "found")
    assert 0.1 < expected["figures"]["ap"] < 1
    for name in ("ap", "ap50", "ap_small", "ap_medium", "ap_large", "ar100", "classes", "images"):
        assert found["figures"][name] == expected["figures"][name], name
    renamed = [
        {**row, "image_id": f"image {row['image_id']}", "category_id": row["category_id"] + 6}
        for row in expected["rows"]
    ]
    assert found["rows"] == renamed
    for words in ("supercategory 'all' is left out", "1 of 81 annotations have no box; they are left out"):
        assert words in found["said"]


def test_a_bad_annotation_file_is_refused_before_anything_is_detected(
    server: TritonServer, dataset: Path, tmp_path: Path
) -> None:
    whole = json.loads((dataset / "annotations.json").read_text())
    whole["annotations"][-1]["bbox"] = [1, 2, 3]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(whole))
    words = [*command(server, dataset, tmp_path / "out"), "--annotations", str(bad)]
    with pytest.raises(
        CodetrError, match=r"bad\.json: annotations\[79\]\.bbox: expected .*; 1 of 80 annotations cannot"
    ):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_tells_its_size_and_rules(server: TritonServer, protocol: Protocol) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    built = built_variant(server.options.repository, "codetr")[1]
    assert server_setup(url, protocol, 30.0, "codetr") == built


def test_a_server_is_the_same_by_both_protocols(server: TritonServer) -> None:
    by_grpc = identity_of_server(server.grpc_url, "grpc", 30.0, "codetr")
    assert by_grpc == identity_of_server(server.http_url, "http", 30.0, "codetr")


def test_the_repository_is_that_which_the_server_serves_and_its_version(server: TritonServer, tmp_path: Path) -> None:
    """A repository of another build, or the version that is not served, would give the wrong size and rules."""
    repository, where = server.options.repository, (server.grpc_url, "grpc", 30.0, "codetr")
    assert served_engine(repository, *where) == "codetr"

    manifest = read_manifest(repository, "codetr")
    other = {**manifest, "created": "2020-01-01T00:00:00+00:00"}
    for name, content in (("codetr", other), ("codetr.2", manifest)):
        path = manifest_path(tmp_path, name)
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    with pytest.raises(CodetrError, match=r"is not the engine codetr of .*: it says created .*, not 2020-01-01"):
        served_engine(tmp_path, *where)
    write_choice(tmp_path, "codetr", Choice(2))
    assert served_engine(tmp_path, *where) == "codetr.2"
