"""The report of a verification: figures beside their limits, and the images on which engine and detector differ most.

A folder of `report.md` for people, `verification.json` for programs, and pictures with the detector's detections at the
left and the engine's at the right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from builder.pipeline.samples import Samples
from builder.pipeline.verify import Agreement, Comparison, detections
from builder.quantise.search import restored, table
from codetr_client.detections import Detections
from codetr_client.drawing import draw, side_by_side
from codetr_client.text import markdown

REPORT, FIGURES = "report.md", "verification.json"
WORST = 4  # images that are drawn
_PICTURE = re.compile(rf"[1-{WORST}]-.*\.jpg", re.DOTALL)
# Detections from this score are drawn; where the detector has none, as with random weights, its best ones.
SHOWN_SCORE, SHOWN_AT_LEAST = 0.3, 10
PICTURE_SIDE = 960  # pixels, the longer side of one half


def write_report(folder: Path, comparison: Comparison, samples: Samples, about: Mapping[str, Any]) -> Path:
    """Write the report of a comparison.

    Args:
        folder: where to; made if it is missing.
        comparison: what was found.
        samples: the images it was found on.
        about: the engine's manifest.

    Returns:
        The path of `report.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    faults = comparison.result.faults(comparison.limits)
    content = {
        "agrees": not faults,
        "faults": faults,
        **comparison.result.to_dict(),
        "ap_difference": comparison.result.ap_difference,
        "limits": asdict(comparison.limits),
        "per_image": [
            {"image": name, **figures._asdict()}
            for name, figures in zip(samples.names, comparison.per_image, strict=True)
        ],
    }
    (folder / FIGURES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    pictures = draw_worst(folder, comparison, samples, about.get("network", {}).get("class_names") or ())
    (folder / REPORT).write_text(_text(comparison, samples, about, faults, pictures), encoding="utf-8")
    return folder / REPORT


def _is_report(folder: Path) -> bool:
    """Return whether a folder holds an earlier report and nothing else, so that another may take its place."""
    try:
        figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if folder.is_symlink() or not isinstance(figures, dict) or "agrees" not in figures:
        return False
    return all(path.name in (REPORT, FIGURES) or _PICTURE.fullmatch(path.name) for path in folder.iterdir())


def place_report(report: Path, place: Path) -> Path:
    """Copy a report's folder to `place`; return the copy.

    An earlier report there is kept until the copy is whole. Where something else is, a number is put behind the name;
    where nothing can be written, the copy goes to a folder for temporary files.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".codetr-report-", dir=place.parent) as aside:
            copy = Path(shutil.copytree(report, Path(aside, "new")))
            free, count = place, 1
            while not is_free(free):
                free, count = place.with_name(f"{place.name}-{count + 1}"), count + 1
            _exchange(copy, free, Path(aside, "earlier"))
            return free
    except OSError:
        return Path(shutil.copytree(report, Path(tempfile.mkdtemp(prefix="codetr-")) / place.name))


def _exchange(new: Path, place: Path, aside: Path) -> None:
    """Rename a folder to its place, and what is there aside; nothing happens if that fails."""
    if os.path.lexists(place):
        place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        if os.path.lexists(aside):
            aside.rename(place)
        raise


def is_free(place: Path) -> bool:
    """Return whether a report may be placed there: nothing is, or an empty folder, or an earlier report."""
    return not os.path.lexists(place) or _is_report(place) or _is_empty(place)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def draw_worst(folder: Path, comparison: Comparison, samples: Samples, class_names: Sequence[str]) -> list[Path]:
    """Draw the images on which engine and detector differ most, worst first; return the pictures' paths."""
    order = sorted(range(len(comparison.per_image)), key=lambda i: _agreement_order(comparison.per_image[i]))
    rule = comparison.rules.suppression
    halves = [detections(output, samples, rule, class_names) for output in (comparison.expected, comparison.actual)]
    paths = []
    for rank, index in enumerate(order[:WORST], 1):
        path = folder / f"{rank}-{Path(samples.names[index]).stem}.jpg"
        expected, actual = (half[index] for half in halves)
        _beside(samples.images[index], expected, actual).save(path, quality=90)
        paths.append(path)
    return paths


def _agreement_order(one: Agreement) -> tuple[float, float, float]:
    return min(one.matched, one.matched_back), one.mean_box_iou, -one.max_score_difference


def _beside(image: NDArray[np.uint8], expected: Detections, actual: Detections) -> Image.Image:
    """Draw what the detector found at the left and what the engine found at the right."""
    scores = np.sort(expected.scores)[::-1]
    threshold = SHOWN_SCORE
    if len(scores) and scores[0] < SHOWN_SCORE:
        threshold = float(scores[:SHOWN_AT_LEAST][-1])
    scale = PICTURE_SIDE / max(image.shape[:2])
    resized = Image.fromarray(image).resize((round(image.shape[1] * scale), round(image.shape[0] * scale)))
    shown = (found.above(threshold) for found in (expected, actual))
    return side_by_side(*(draw(resized, replace(found, boxes=found.boxes * scale)) for found in shown))


def _text(
    comparison: Comparison, samples: Samples, about: Mapping[str, Any], faults: Sequence[str], pictures: Sequence[Path]
) -> str:
    verdict = "The engine does not reproduce the detector: " + "; ".join(faults) if faults else "The engine agrees."
    lines = [f"# Verification of {_title(about)}", "", verdict, "", *_figures(comparison), "", *_quantisation(about)]
    lines += [
        "| image | found again | of the engine's are the detector's | score difference of 95% | of all | mean IoU |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {markdown(name)} | {one.matched:.1%} | {one.matched_back:.1%} | {one.usual_score_difference:.2e} | "
        f"{one.max_score_difference:.2e} | {one.mean_box_iou:.5f} |"
        for name, one in zip(samples.names, comparison.per_image, strict=True)
    ]
    lines += ["", "The images that differ most, PyTorch float32 at the left, the engine at the right:", ""]
    lines += [f"![{markdown(path.stem)}]({quote(path.name)})" for path in pictures]
    lines += ["", "Built with: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


def _title(about: Mapping[str, Any]) -> str:
    return (
        f"{about['variant']}, {about['engine']} engine in {about['precision']}, {about['height']}x{about['width']} "
        f"pixels (h x w), batch {'1 to ' if about['dynamic_batch'] else ''}{about['max_batch_size']}"
    )


def _quantisation(about: Mapping[str, Any]) -> list[str]:
    """Return what was quantised, and the table of the search that chose it."""
    content = about.get("quantisation")
    if content is None:
        return []
    calibration = content["calibration"]
    lines = [
        f"{content['quantised']} layers are {about['precision']}: {', '.join(content['layers'])}. Their ranges "
        f"({content['method']}) were seen on {calibration['images']} pictures: {markdown(calibration['source'])}.",
        "",
    ]
    return lines if content["search"] is None else [*lines, table(restored(content["search"])), ""]


def _figures(comparison: Comparison) -> list[str]:
    """Return the table of figures and limits."""
    result, limits = comparison.result, comparison.limits
    rows = [
        (
            f"best {result.compared} candidates found again",
            f"{result.matched:.2%}",
            f"at least {limits.min_matched:.0%}",
        ),
        (
            f"best {result.compared} of the engine that are the detector's",
            f"{result.matched_back:.2%}",
            f"at least {limits.min_matched:.0%}",
        ),
        ("of the engine NaN or infinite", f"{result.not_finite}", "none"),
        (
            "score difference of 95% of them",
            f"{result.usual_score_difference:.2e}",
            f"at most {limits.max_usual_score_difference:g}",
        ),
        ("largest score difference", f"{result.max_score_difference:.2e}", ""),
        ("mean IoU", f"{result.mean_box_iou:.5f}", ""),
    ]
    if result.batch_matched is not None:
        rows.append(
            ("largest batch against batch 1", f"{result.batch_matched:.2%}", f"at least {limits.min_matched:.0%}")
        )
    if result.ap_difference is None:
        rows.append(("AP", "no annotations", ""))
    else:
        rows.append(("AP 50:95 of PyTorch float32", f"{result.ap:.4f}", ""))
        rows.append(("AP 50:95 of the engine", f"{result.ap_engine:.4f}", ""))
        rows.append(("AP difference", f"{result.ap_difference:+.4f}", f"loss of at most {limits.max_ap_loss:g}"))
    table = [f"| {name} | {value} | {limit} |" for name, value, limit in rows]
    return [f"| over {result.images} images | | limit |", "|---|---|---|", *table]
