"""Writes the tables that stand in the pages between `<!-- table: NAME -->` and `<!-- end -->`: python docs/tables.py

Their figures come from `perf/results`, the variants from the families' presets. A test fails while a page differs.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "perf" / "results"
_TABLE = re.compile(r"(<!-- table: ([a-z0-9 -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "not measured"


def filled(page: str) -> str:
    """Return a page with its tables as they are now; raises KeyError for a table that is not known."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", page)


def main() -> None:
    """Write every page whose tables have changed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "clients")]
    for path in sorted((ROOT / "docs").glob("*.md")):
        before = path.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with a line break at its end."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def results(name: str) -> Any:
    """Return a file of `perf/results`."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def machine(record: Mapping[str, Any]) -> str:
    """Return in one line where and with what something was measured."""
    here = record["machine"]
    gpu = here["gpus"][0] if here["gpus"] else "no GPU"
    name = gpu["name"] if isinstance(gpu, dict) else str(gpu).split(",")[0]
    command = record["command"].split(" --output")[0]
    return f"{record['time'][:10]}; {here['cpu']}, {here['cores']} cores, {name}; `{command}`"


def _gpu(name: str) -> str:
    """Return "H100" of "NVIDIA H100 80GB HBM3, 580.159.04, ..."."""
    return re.split(r"[ ,]", name.removeprefix("NVIDIA "))[0]


def variants() -> str:
    """The presets of all families."""
    from builder.families import presets

    rows = [
        (
            f"`{each.name}`",
            each.family,
            each.summary,
            "{} x {}".format(*each.input_size),
            each.num_classes,
            each.max_detections,
            "-" if each.box_ap is None else f"{each.box_ap:.1f}",
            f"`{each.checkpoint}`" if each.checkpoint else "-",
        )
        for each in presets().values()
    ]
    return table(("variant", "family", "network", "height x width", "classes", "K", "box AP", "file"), rows)


def rules() -> str:
    """How each family's images go in and candidates come out, where all its presets agree."""
    from builder.families import FAMILIES

    rows = []
    for family in FAMILIES.values():
        for rule in dict.fromkeys(preset.rules for preset in family.presets.values()):
            pixels, suppression = rule.pixels, rule.suppression
            edges = f"{pixels.shortest_edge} / {pixels.longest_edge}" if pixels.shortest_edge else "-"
            thresholds = "-" if suppression.kind == "none" else f"IoU {suppression.iou_threshold:g}"
            rows.append(
                (
                    family.name,
                    pixels.resize,
                    "yes" if pixels.antialias else "no",
                    edges,
                    suppression.kind,
                    thresholds,
                    "yes" if suppression.clip else "no",
                )
            )
    columns = ("family", "resize", "antialias", "shortest / longest edge", "suppression", "threshold", "clipped")
    return table(columns, rows)


SOURCES = (
    ("PyTorch float32, CPU", "pytorch-fp32-cpu"),
    ("PyTorch float32, H200", "pytorch-fp32-h200"),
    ("PyTorch float32, H200, beside the plan below", "pytorch-fp32-h200-beside-plan"),
    ("PyTorch float16, H200", "pytorch-fp16-h200"),
    ("PyTorch bfloat16, H200", "pytorch-bf16-h200"),
    ("ONNX engine in one process", "onnx"),
    ("ONNX engine through the real server (gRPC)", "server"),
    ("`torch` engine in float16 through the real server, H200", "server-torch-fp16-h200"),
    ("`torch` engine in float16 through the real server, H100", "server-torch-fp16-h100"),
    ("`torch` engine in FP8 (`backbone-linears`) through the real server, H100", "server-torch-fp8-h100"),
    ("float32 plan, TensorRT 8.5.3, through the real server, H200", "server-tensorrt-8.5.3-h200"),
    ("float16 plan, TensorRT 8.5.3, through the real server, H100", "server-tensorrt-8.5.3-fp16-h100"),
    ("RT-DETRv2's demo: PyTorch float32, CPU", "pytorch-fp32-cpu-rtdetrv2"),
    ("RT-DETRv2's demo: ONNX engine through the real server (gRPC)", "server-rtdetrv2"),
    ("RT-DETRv2's demo: PyTorch float32, H100", "pytorch-fp32-h100-rtdetrv2"),
    ("RT-DETRv2's demo: float32 plan, TensorRT 8.5.3, through the server, H100", "server-tensorrt-8.5.3-rtdetrv2-h100"),
    ("RT-DETRv2's demo: `torch` engine in float16 through the server, H100", "server-torch-fp16-rtdetrv2-h100"),
    ("RT-DETRv2's demo: PyTorch float32, H200", "pytorch-fp32-h200-rtdetrv2"),
    (
        "RT-DETRv2's demo: float16 plan, TensorRT 8.5.3, through the server, H200",
        "server-tensorrt-8.5.3-fp16-rtdetrv2-h200",
    ),
    (
        "RT-DETRv2's demo: float16 plan, TensorRT 8.5.3, through the server, H100",
        "server-tensorrt-8.5.3-fp16-rtdetrv2-h100",
    ),
    (
        "RT-DETRv2's demo: INT8 plan, TensorRT 8.5.3, through the server, H100",
        "server-tensorrt-8.5.3-int8-rtdetrv2-h100",
    ),
)


def accuracy() -> str:
    """COCO AP of the demo detector on held-out images, by source."""
    rows = []
    for title, name in SOURCES:
        record = results(f"accuracy/{name}.json")
        figures = [f"{record[key]:.3f}" for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
        rows.append((title, record["images"], *figures))
    return table(("", "images", "AP 50:95", "AP 50", "AP 75", "small", "medium", "large"), rows)


def accuracy_by_shape() -> str:
    """The same by orientation, and what is found where nothing is."""
    record = results("accuracy/pytorch-fp32-cpu.json")
    rows = [(name, *(f"{value:.4g}" for value in each.values())) for name, each in record["orientations"].items()]
    columns = ("", *next(iter(record["orientations"].values())))
    count, score = record["empty_images"], record["highest_score_on_empty"]
    return table(columns, rows) + f"\nHighest score on the {count} images without a shape: {score:.2f}.\n"


def precision() -> str:
    """The largest error of half precision against float32 over the reference inputs."""
    rows = []
    for name in ("float16", "bfloat16"):
        each = [row for row in results("precision.json")["rows"] if row["precision"] == name]
        worst = [f"{max(row[key] for row in each):.1e}" for key in ("memory", "logits", "boxes", "max_box_error")]
        rows.append((name, *worst))
    return table(("precision", "memory, relative", "logits, relative", "boxes, relative", "box, absolute"), rows)


def canvas() -> str:
    """How far a canvas moves DETR's boxes from those of the image alone."""
    record = results("canvas/detr_r50.json")
    rows = []
    for row in record["rows"]:
        moves = [f"{row[key]:.4f}" for key in ("box", "box_max", "box_of_another_image")]
        features = ["-" if row[key] is None else f"{row[key]:.1%}" for key in ("features", "inner_features")]
        size, images = f"{row['height']} x {row['width']}", f"{row['exact']} of {row['images']}"
        rows.append((size, row["orientation"], images, *moves, *features))
    columns = (
        "canvas, height x width",
        "images",
        "at their exact size",
        "boxes move by",
        "at most",
        "by another image",
    )
    return f"{machine(record)}\n\n" + table((*columns, "backbone's tokens", "away from the border"), rows)


def engine(name: str = "engine-h200") -> str:
    """Latency of Co-DINO by variant, size and batch, in PyTorch and as engine, beside the published figures."""
    record = results(f"{name}.json")
    groups: dict[tuple[str, int, int, int], dict[tuple[str, str], dict[str, Any]]] = {}
    for case in record["cases"]:
        group = groups.setdefault((case["variant"], case["batch"], case["width"], case["height"]), {})
        group[case["implementation"], case["precision"]] = case
    rows = []
    for (variant, batch, width, height), cases in sorted(groups.items(), key=lambda each: each[0]):
        half, eighth = cases["torch", "float16"], cases.get(("torch", "fp8"))
        figures = [f"{cases['PyTorch', precision]['p50_ms']:.1f} ms" for precision in ("float32", "float16")]
        rows.append(
            (
                f"`{variant}`",
                f"{width}x{height}",
                batch,
                *figures,
                f"{half['p50_ms']:.2f} ms",
                f"{half['images_per_s']:.0f}",
                "" if eighth is None else f"{eighth['p50_ms']:.2f} ms",
                "" if half["published_ms"] is None else f"{half['published_ms']} ms",
            )
        )
    columns = ("variant", "width x height", "batch", "PyTorch fp32", "PyTorch fp16", "`torch` engine fp16", "images/s")
    return f"{machine(record)}\n\n" + table((*columns, "fp8", "published: RTX 4090, TensorRT fp16"), rows)


def engine_joined() -> str:
    """Latency of Co-DINO's engines on an H100 with all behind an encoder layer's attention as one operator, by run."""
    records = [results(f"engine-h100-joined/{name}.json") for name in ("1152x768", "r50", "swin-l", "sizes")]
    groups: dict[tuple[str, str, int, int, int], dict[tuple[str, bool], dict[str, Any]]] = {}
    for record in records:
        for case in record["cases"]:
            if case["implementation"] != "torch":
                continue
            key = (record["time"][:10], case["variant"], case["batch"], case["width"], case["height"])
            groups.setdefault(key, {})[case["precision"], case["name"].endswith("-plain")] = case
    rows = []
    for (day, variant, batch, width, height), found in sorted(groups.items(), key=lambda each: each[0]):
        figures = [
            f"{case['p50_ms']:.2f} ms" if (case := found.get((precision, plain))) else ""
            for precision in ("float16", "fp8")
            for plain in (True, False)
        ]
        rate = f"{found['float16', False]['images_per_s']:.0f}"
        rows.append((day, f"`{variant}`", f"{width}x{height}", batch, *figures, rate))
    columns = ("day", "variant", "width x height", "batch", "fp16, separate", "fp16", "fp8, separate", "fp8")
    return "\n\n".join(map(machine, records)) + "\n\n" + table((*columns, "images/s, fp16"), rows)


def post_attention() -> str:
    """Time of all behind an encoder layer's attention, by size, beside the operators that it replaces."""
    record = results("post-attention-h100.json")
    sizes = sorted({(case["height"], case["width"]) for case in record["cases"]})
    rows = []
    for e4m3, followed in itertools.product((False, True), (True, False)):
        for design, title in (("ours", "one kernel"), ("separate operators", "separate operators")):
            found = {
                (case["height"], case["width"]): case["microseconds"]
                for case in record["cases"]
                if (case["design"], case["e4m3"], case["followed"]) == (design, e4m3, followed)
            }
            words = ("E4M3" if e4m3 else "float16", "yes" if followed else "")
            rows.append((title, *words, *(f"{found[size]:.0f} µs" for size in sizes)))
    columns = ("", "feed-forward network", "next layer's products", *(f"{h}x{w}" for h, w in sizes))
    return f"{machine(record)}\n\n" + table(columns, rows)


def families() -> str:
    """Latency of RT-DETRv2 and DETR by batch, in PyTorch and as engine, beside the published figures."""
    record = results("engine-h200-families/engine.json")
    groups: dict[tuple[str, int], dict[tuple[str, str], dict[str, Any]]] = {}
    for case in record["cases"]:
        group = groups.setdefault((case["variant"], case["batch"]), {})
        group[case["implementation"], case["precision"]] = case
    rows = []
    for (variant, batch), cases in groups.items():
        built = cases["torch", "float16"]
        figures = [f"{cases['PyTorch', precision]['p50_ms']:.1f} ms" for precision in ("float32", "float16")]
        known = built["published_ms"]
        rows.append(
            (
                f"`{variant}`",
                f"{built['width']}x{built['height']}",
                batch,
                *figures,
                f"{built['p50_ms']:.2f} ms",
                f"{built['images_per_s']:.0f}",
                "" if known is None else f"{known:.1f} ms, {built['published_on']}",
            )
        )
    columns = ("variant", "width x height", "batch", "PyTorch fp32", "PyTorch fp16", "`torch` engine fp16", "images/s")
    return f"{machine(record)}\n\n" + table((*columns, "published: TensorRT fp16"), rows)


# What was kept of each plan in `tensorrt-8.5.3`, and its AP and PyTorch's in `accuracy`.
PLANS = (
    ("", "server-tensorrt-8.5.3-rtdetrv2-h100", "pytorch-fp32-h100-rtdetrv2"),
    ("rtdetrv2-fp16-h200-", "server-tensorrt-8.5.3-fp16-rtdetrv2-h200", "pytorch-fp32-h200-rtdetrv2"),
    ("rtdetrv2-fp16-h100-", "server-tensorrt-8.5.3-fp16-rtdetrv2-h100", "pytorch-fp32-h100-rtdetrv2"),
    ("rtdetrv2-int8-h100-", "server-tensorrt-8.5.3-int8-rtdetrv2-h100", "pytorch-fp32-h100-rtdetrv2"),
    ("co_dino-h200-", "server-tensorrt-8.5.3-h200", "pytorch-fp32-h200-beside-plan"),
    ("co_dino-fp16-h100-", "server-tensorrt-8.5.3-fp16-h100", "pytorch-fp32-h200-beside-plan"),
)


def plans() -> str:
    """The plans that were built, compared with PyTorch, served and evaluated."""
    rows = []
    for name, served, pytorch in PLANS:
        manifest, found = (results(f"tensorrt-8.5.3/{name}{kind}.json") for kind in ("manifest", "verification"))
        rows.append(
            (
                f"`{manifest['variant']}`, {manifest['precision']}",
                _batches(manifest),
                _gpu(manifest["gpu"]),
                manifest["plugin_layers"],
                f"{found['matched']:.2%}",
                f"{found['usual_score_difference']:.1e}, {found['max_score_difference']:.1e}",
                "yes" if found["agrees"] else "**no**",
                *(f"{results(f'accuracy/{each}.json')['ap']:.5f}" for each in (served, pytorch)),
            )
        )
    columns = ("plan", "batches", "GPU", "our plugin's layers", "candidates found again", "95 % of scores, all within")
    return table((*columns, "`codetr verify` accepts", "AP through the server", "AP of PyTorch float32"), rows)


# Plans with random weights in `tensorrt-8.5.3`, and how they compare with PyTorch.
COMPARED = (
    "detr_r50-fp32-h100",
    "detr_r50-fp16-h100",
    "detr_r101-fp16-h100",
    "rtdetrv2_r18vd-fp16-h100",
    "rtdetrv2_r18vd-fp16-open-h100",
    "rtdetrv2_r50vd-fp16-h100",
)


def compared_plans() -> str:
    """How plans with random weights, and PyTorch in float16, compare with PyTorch in float32."""
    rows = []
    for name in COMPARED:
        manifest, compared = (results(f"tensorrt-8.5.3/{name}-{kind}.json") for kind in ("manifest", "against-pytorch"))
        figures = [
            f"{each['matched']:.1%}, {each['max_score_difference']:.1e}, {each['nearest_box']['p95']:.1e}"
            for each in (compared["against_float32"][key] for key in ("engine", "float16"))
        ]
        rows.append((f"`{manifest['variant']}`, {manifest['precision']}", _batches(manifest), *figures))
    return table(("plan", "batches", "the plan", "PyTorch float16"), rows)


def _batches(manifest: Mapping[str, Any]) -> str:
    """Return the batches of an engine, "1 to 4" for instance."""
    largest = manifest["max_batch_size"]
    return f"1 to {largest}" if manifest["dynamic_batch"] else str(largest)


# Runs of `bench engine` in `tensorrt-8.5.3`, and the batches that their plans were built for.
PLAN_SPEEDS = {
    "engine-h200": "1 to 4",
    "engine-h200-demos": "1",
    "engine-h100": "1 to 4",
    "engine-h100-co_dino-fp16": "1",
    "engine-h100-rtdetrv2-fp16": "1",
    "engine-h100-rtdetrv2-int8": "1",
    "engine-h100-rtdetrv2_r50vd-fp16": "1",
    "engine-h100-rtdetrv2_r18vd-fp16": "1",
    "engine-h100-rtdetrv2_r18vd-fp16-open": "1 to 4",
    "engine-h100-detr_r101-fp16": "1 to 4",
}


def plan_speed() -> str:
    """Latency of plans of TensorRT 8.5.3.1, beside PyTorch and the `torch` engine of the same run."""
    rows, places = [], []
    for name, batches in PLAN_SPEEDS.items():
        record = results(f"tensorrt-8.5.3/{name}.json")
        places.append(machine(record))
        for plan in (case for case in record["cases"] if case["implementation"] == "tensorrt"):
            same = [case for case in record["cases"] if all(case[key] == plan[key] for key in ("variant", "batch"))]
            times = {(case["implementation"], case["precision"]): f"{case['p50_ms']:.2f} ms" for case in same}
            kinds = (("PyTorch", "float32"), ("PyTorch", "float16"), ("torch", "float16"))
            rows.append(
                (
                    f"`{plan['variant']}`",
                    f"{plan['width']}x{plan['height']}",
                    batches,
                    plan["batch"],
                    _gpu(record["machine"]["gpus"][0]),
                    f"{plan['precision']}, {plan['p50_ms']:.2f} ms",
                    *(times.get(kind, NOT_MEASURED) for kind in kinds),
                )
            )
    columns = ("variant", "width x height", "built for", "batch", "GPU", "plan", "PyTorch fp32", "PyTorch fp16")
    return "\n\n".join(places) + "\n\n" + table((*columns, "`torch` engine fp16"), rows)


def int8_plans() -> str:
    """The plans of RT-DETRv2's demo on an H100, by precision."""
    times = {
        case["precision"]: f"{case['p50_ms']:.2f}"
        for record in (results(f"tensorrt-8.5.3/{name}.json") for name in PLAN_SPEEDS)
        if _gpu(record["machine"]["gpus"][0]) == "H100"
        for case in record["cases"]
        if (case["implementation"], case["variant"], case["batch"]) == ("tensorrt", "rtdetrv2_demo", 1)
    }
    rows = []
    for name, served, _ in PLANS:
        manifest, found = (results(f"tensorrt-8.5.3/{name}{kind}.json") for kind in ("manifest", "verification"))
        if (manifest["variant"], _gpu(manifest["gpu"])) == ("rtdetrv2_demo", "H100"):
            ap, precision = results(f"accuracy/{served}.json")["ap"], manifest["precision"]
            rows.append((precision, f"{ap:.5f}", f"{found['matched']:.1%}", times.get(precision, NOT_MEASURED)))
    return table(("precision", "AP", "candidates found again", "ms (p50), one image"), rows)


def memory() -> str:
    """GPU memory of every variant as far as it was measured."""
    from builder.families import presets

    kinds = (("PyTorch", "float32"), ("PyTorch", "float16"), ("torch", "float16"))
    cells: dict[str, dict[tuple[int, int], dict[tuple[str, str], str]]] = {name: {} for name in presets()}
    measured = results("engine-h200.json")["cases"] + results("engine-h200-families/engine.json")["cases"]
    for case in measured:
        if case["batch"] != 1:
            continue
        size = cells[case["variant"]].setdefault((case["width"], case["height"]), {})
        size[case["implementation"], case["precision"]] = f"{case['memory_gib']:.2f} GiB"
    rows: list[Sequence[object]] = []
    for name, sizes in cells.items():
        for (width, height), figures in sorted(sizes.items()):
            rows.append((f"`{name}`", f"{width}x{height}", *(figures.get(kind, NOT_MEASURED) for kind in kinds)))
    columns = ("variant", "width x height, batch 1", "PyTorch fp32", "PyTorch fp16", "`torch` engine fp16")
    others = ", ".join(f"`{name}`" for name, sizes in cells.items() if not sizes)
    return table(columns, rows) + f"\nNot measured: {others}.\n"


def server_memory() -> str:
    """Memory of the server with the torch engine, as it was under load."""
    record = results("server-h200/results.json")
    gauges = [each["gauges"] for each in record["results"] if each["model"] == "codetr"]
    rows = [
        (title, f"{min(each[key] for each in gauges):.2f}", f"{max(each[key] for each in gauges):.2f}")
        for title, key in (("GPU memory in use, GiB", "gpu_memory_gib"), ("memory of the machine, GiB", "memory_gib"))
    ]
    return f"{machine(record)}\n\n" + table(("", "lowest level", "highest level"), rows)


def operator() -> str:
    """Time and error of the operator in float16, one encoder call, batch 1."""
    record = results("operator-h200.json")
    names = {
        "ours": "this kernel",
        "plain": "plain kernel, one thread a channel",
        "grid_sample": "`grid_sample`",
    }
    sizes = sorted({(case["height"], case["width"]) for case in record["cases"]})
    rows = []
    for design, title in names.items():
        cases = {
            (case["height"], case["width"]): case
            for case in record["cases"]
            if (case["design"], case["dtype"], case["role"], case["batch"]) == (design, "float16", "encoder", 1)
        }
        errors = [f"{case['error']:.0e}" for case in cases.values()]
        error = " to ".join(dict.fromkeys((min(errors, key=float), max(errors, key=float))))
        rows.append((title, *(f"{cases[size]['microseconds']:.0f} µs" for size in sizes), error))
    columns = ("", *(f"{height}x{width}" for height, width in sizes), "relative error")
    return f"{machine(record)}\n\n" + table(columns, rows)


def section(name: str, heading: str) -> str:
    """Return the table under a heading of a report."""
    text = (RESULTS / name).read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return "\n".join(lines) + "\n"


def from_report(folder: str, *sections: str) -> Callable[[], str]:
    """Return a table of the tables under some headings of a folder's report, and where it was measured."""

    def tables() -> str:
        return f"{machine(results(f'{folder}/results.json'))}\n\n" + "\n".join(
            section(f"{folder}/report.md", heading) for heading in sections
        )

    return tables


def service() -> str:
    """What the server adds to an engine, by load, with the times of the steps."""
    lines = (RESULTS / "service-h100/service.md").read_text(encoding="utf-8").splitlines()
    rows, verdict = ("\n".join(line for line in lines if line.startswith(mark)) for mark in ("|", "*"))
    return f"{machine(results('service-h100/service.json'))}\n\n{rows}\n\n{verdict}\n"


def shared_engine() -> str:
    """What a second instance that shares the engine changes, by load."""
    records = [results(f"service-h100-guests/{name}/service.json") for name in ("one", "two")]
    rows = [
        [
            f"{level['value']:g} {'at a time' if level['mode'] == 'concurrency' else 'a second'}",
            instances,
            *(f"{level['reading'][key]:.1f}" for key in ("throughput", "p50", "p95", "p99")),
            f"{level['steps']['codetr_detector']['batch']:.1f}",
        ]
        for levels in zip(*(record["levels"] for record in records), strict=True)
        for instances, level in enumerate(levels, 1)
    ]
    columns = ["load", "instances", "images/s", "p50 ms", "p95 ms", "p99 ms", "mean batch"]
    return f"{machine(records[0])}\n\n{table(columns, rows)}"


def waiting_for_a_shared_engine() -> str:
    """What the autoscaler is told of one instance and of two that share the engine, by load."""
    records = [results(f"service-h100-guests/{name}/service.json") for name in ("one", "two")]
    rows = []
    for levels in zip(*(record["levels"] for record in records), strict=True):
        steps = [level["steps"]["codetr_detector"] for level in levels]
        load = f"{levels[0]['value']} at a time" if levels[0]["mode"] == "concurrency" else "70% of the most"
        rows.append([load, *(f"{step['queue'] / step['compute_infer']:.2f}" for step in steps)])
    return f"{machine(records[0])}\n\n{table(['load', 'one instance', 'two'], rows)}"


def preprocessing() -> str:
    """Rate of pre-processing beside OpenCV's bare decoding and resizing."""
    record = results("preprocess/preprocess.json")
    rows = [
        (
            case["image_format"],
            f"{case['width']}x{case['height']}",
            f"{case['images_per_s']:.0f}",
            f"{case['opencv_images_per_s']:.0f}",
            f"{case['share']:.0%}",
        )
        for case in record["preprocess"]
        if case["image_format"] in ("jpeg", "png", "webp")
    ]
    columns = ("format", "picture", "images/s and core", "OpenCV alone", "share")
    return f"{machine(record)}\n\n" + table(columns, rows)


def soak() -> str:
    """What a long load left of memory."""
    record = results("soak/results.json")
    outcome, used = record["outcome"], record["memory"]
    rows = [
        ("requests", outcome["requests"]),
        ("failures", outcome["failures"]),
        ("growth of server and steps after the warm-up", f"{used['growth_mb']:.1f} MB"),
        ("growth of what they hold of /dev/shm", f"{used['shared_growth_mb']:.1f} MB"),
        ("server and steps at the end", f"{used['total']['end']:.0f} MB"),
    ]
    return f"{machine(record)}\n\n" + table(("", ""), rows)


def fuzz() -> str:
    """What mutated images did in processes, by format."""
    record = results("fuzz-in-process.json")
    rows = []
    for form, each in record["formats"].items():
        seconds = each["seconds"]
        counts = (each["files"], each["accepted"], each["refused"], sum(each["faults"].values()))
        times = (f"{1e3 * seconds['median']:.2f} ms", f"{1e3 * seconds['p99']:.1f} ms", f"{seconds['max']:.1f} s")
        rows.append((form, *(f"{count:,}" for count in counts), *times, f"{each['peak_memory_mb']:,} MB"))
    columns = ("", "files", "accepted", "refused", "faults", "median", "p99", "longest", "most memory")
    return f"{machine(record)}\n\n" + table(columns, rows)


def fuzz_server() -> str:
    """The same through a real server."""
    record = results("fuzz-server.json")
    memory, seconds, answers = record["peak_memory_mb"], record["seconds"], record["answers"]
    step = max(value for name, value in memory.items() if name.startswith("codetr_preprocess"))
    rows = [
        ("mutated files, and whole ones between them", f"{record['images']:,}"),
        ("of them mutated", f"{record['mutated_files']:,}"),
        ("requests", f"{record['requests']:,}"),
        ("answered", f"{answers['accepted']:,}"),
        ("refused with the message that the file gets alone", f"{answers['refused']:,}"),
        ("faults: other answers, processes that ended", record["faults"]),
        (
            "median, p99 and longest of a request",
            f"{seconds['median']:.3f}, {seconds['p99']:.2f} and {seconds['max']:.1f} s",
        ),
        ("most memory of a pre-processing step", f"{step:,} MB"),
        ("of the server itself", f"{memory['server']:,} MB"),
    ]
    return f"{machine(record)}\n\n" + table(("", ""), rows)


def tensorrt_rtx() -> str:
    """The graphs that TensorRT-RTX compiled on a CPU."""
    rows = []
    for name in ("tensorrt-rtx-swin-l.json", "tensorrt-rtx-r50.json"):
        record = results(name)
        types = record["convolutions_and_products"]
        rows.append(
            (
                f"`{record['variant']}`",
                f"{record['height']} x {record['width']}",
                record["precision"],
                f"{record['seconds']['compile']:.0f} s",
                f"{record['engine_bytes'] / 1e6:.0f} MB",
                types["HALF"],
                types["FLOAT"],
            )
        )
    columns = ("variant", "height x width", "precision", "compiled in", "engine", "products in half", "in float32")
    return table(columns, rows)


def capacity() -> str:
    """How many servers, by rate."""
    from perf.capacity.plan import COLUMNS, capacity_rows

    record = results("capacity/results.json")
    here = f"{machine(record['measured'])}\n\n`{record['command'].split(' --output')[0]}`\n\n"
    return here + table((*COLUMNS, "cost an hour", "cost of a million"), capacity_rows(record))


def quantised() -> str:
    """The demos in INT8 on a CPU: `codetr bench quantized`."""
    parts = []
    for path in sorted((RESULTS / "quantised").glob("onnx-*.json")):
        record = results(f"quantised/{path.name}")
        rows = [
            [
                f"{case['name']}, {case['precision']}",
                "-" if case["quantised"] is None else case["quantised"],
                "-" if case["ap"] is None else f"{case['ap']:.4f}",
                f"{case['found_again']:.1%}",
                f"{case['processor_ms']:.0f}" if case.get("processor_ms") else "-",
                "-" if case["mib"] is None else f"{case['mib']:.1f}",
                f"{case['encoder_error']:.4f}" if case.get("encoder_error") else "-",
            ]
            for case in record["cases"]
        ]
        about = f"`{record['variant']}`, AP on {record['images']} drawn shapes; {machine(record)}"
        columns = ["", "layers quantised", "AP", "candidates found again", "ms", "MiB", "error of the encoder's output"]
        parts.append(f"{about}\n\n{table(columns, rows)}")
    return "\n" + "\n".join(parts)


def fp8() -> str:
    """Swin-L in FP8."""
    cases = results("quantised/torch-fp8-h200.json")["cases"]
    rows = [
        [case["quantised"], case["layers"], f"{min(case['p50_ms']):.2f}", f"{case['memory_relative_error']:.4f}"]
        for case in cases
    ]
    return table(["in FP8", "layers", "ms (p50)", "relative error of the encoder's output"], rows)


def fp8_kernels() -> str:
    """What kernels take in FP16 and FP8."""
    cases = [results("quantised/torch-fp8-h200.json")["cases"][i] for i in (0, 2, 4)]
    kinds = list(dict.fromkeys(kind for case in cases for kind in case["kernels_ms"]))
    rows = [[kind, *(f"{case['kernels_ms'].get(kind, 0):.2f}" for case in cases)] for kind in kinds]
    return table(["kernels", *(case["quantised"] for case in cases)], rows)


def fp8_accuracy() -> str:
    """The demo in FP8."""
    cases = results("quantised/torch-fp8-h200.json")["demo"]["cases"]
    rows = [[case["quantised"], f"{case['ap']:.4f}", f"{case['found_again']:.1%}"] for case in cases]
    return table(["in FP8", "AP", "candidates found again"], rows)


def gpus() -> str:
    """What a second GPU brings through a server."""
    record = results("gpus/results.json")
    rates = {(each["concurrency"], len(each["gpus"])): each["images_per_s"] for each in record["results"]}
    rows = [
        [count, f"{rates[count, 1]:.1f}", f"{rates[count, 2]:.1f}", f"{record['ratios'][f'server {count}']:.2f}"]
        for count in sorted({count for count, _ in rates})
    ]
    return table(["requests at a time", "images/s on one GPU", "on two", "ratio"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "quantised": quantised,
    "service": service,
    "shared engine": shared_engine,
    "waiting for a shared engine": waiting_for_a_shared_engine,
    "fp8": fp8,
    "fp8 kernels": fp8_kernels,
    "fp8 accuracy": fp8_accuracy,
    "variants": variants,
    "rules": rules,
    "accuracy": accuracy,
    "accuracy by shape": accuracy_by_shape,
    "gpus": gpus,
    "precision": precision,
    "canvas": canvas,
    "engine": engine,
    "engine h100": engine_joined,
    "post-attention": post_attention,
    "families": families,
    "plans": plans,
    "compared plans": compared_plans,
    "plan speed": plan_speed,
    "int8 plans": int8_plans,
    "memory": memory,
    "server memory": server_memory,
    "operator": operator,
    "server on a gpu": from_report("server-h200", "codetr under concurrency"),
    "steps on a gpu": from_report("server-h200", "Time by step"),
    "server on a cpu": from_report("server", "codetr under concurrency", "Time by step"),
    "preprocessing": preprocessing,
    "soak": soak,
    "fuzz": fuzz,
    "fuzz server": fuzz_server,
    "tensorrt-rtx": tensorrt_rtx,
    "capacity": capacity,
    "capacity checked": from_report("cluster", "Loads and what was predicted"),
    "faults behind envoy": from_report("cluster", "Faults behind Envoy"),
    "autoscaler": from_report("cluster", "What the autoscaler is told"),
    "cost of sizes": from_report("cost", "Input size and images in a request"),
    "cost of batching": from_report("cost", "Dynamic batching of the detector"),
    "cost of sharing instances": from_report("cost", "Instances that share the engine without batching"),
    "cost of preprocess instances": from_report("cost", "Instances of codetr_preprocess"),
    "cost of postprocess instances": from_report("cost", "Instances of codetr_postprocess"),
    "cost of protocols": from_report("cost", "Protocol"),
    "cost of pictures": from_report("cost", "JPEG sent"),
}

if __name__ == "__main__":
    main()
