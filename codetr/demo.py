"""`codetr demo`: the whole way once, from weights to an annotated picture, on this machine."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.shown import DONE, line, shown
from demo import Family
from serving.errors import CodetrError

if TYPE_CHECKING:
    from builder.family import DetectorConfig
    from codetr.stages import Stages

MAX_BATCH_SIZE = 4
SCORE_THRESHOLD = 0.3


def demo(
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the repository, the picture and the boxes.", show_default="runs/demo[-FAMILY]"),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Another image than the sample that comes along.")] = None,
    family: Annotated[Family, typer.Option(help="Family of the detector.")] = "co_dino",
    web: Annotated[
        bool, typer.Option("--web", help="Then serve a page to try pictures on, until Ctrl-C; needs the extra `web`.")
    ] = False,
) -> None:
    """Build the demo detector, serve it, detect on an image, write the annotated picture, stop the server."""
    from codetr.detect import raise_failures, results_table
    from codetr.stages import Stages, own_console
    from codetr.web import check_installed, page_of, show_page
    from codetr_client.client import CoDetrClient
    from codetr_client.files import RESULTS_NAME, detect_files
    from codetr_client.outputs import make_folder, refuse_inside
    from demo import SAMPLE_IMAGE
    from serving.launch import running_server

    if web:
        check_installed()
    console = own_console()
    output = output or default_output(family)
    repository = output / "repository"
    make_folder(output)
    refuse_inside([repository], [image])
    prepare_repository(repository, Stages(console), family)
    with ExitStack() as stack:
        with console.status("starting tritonserver"):
            server = stack.enter_context(running_server(repository))
            console.print(line(DONE, f" serving on {server.grpc_url} (gRPC) and {server.http_url} (HTTP)"))
            with CoDetrClient(server.grpc_url) as client:
                results = detect_files(client, [image or SAMPLE_IMAGE], output, SCORE_THRESHOLD)
        console.print(results_table(results))
        raise_failures(results)
        picture: Path = results[0].picture  # type: ignore[union-attr]  # none failed
        for name, path in (("annotated picture", picture), ("boxes", output / RESULTS_NAME)):
            console.print(line(f"{name}: ", shown(path, "bold")), soft_wrap=True)
        if web:
            show_page(page_of(server.grpc_url))


def default_output(family: Family) -> Path:
    """Return the folder of a family's demo; no family's repository takes another's place."""
    return Path("runs/demo" if family == "co_dino" else f"runs/demo-{family}")


def prepare_repository(repository: Path, stages: Stages, family: Family = "co_dino") -> None:
    """Build the demo repository of a family, unless it is there already and made of the same weights."""
    from builder.pipeline.build import BuildOptions, build_repository
    from builder.pipeline.export import InputSpec
    from builder.variants import get_variant
    from demo import WEIGHTS
    from serving.manifest import manifest_path, sha256

    variant: DetectorConfig = get_variant(f"{family}_demo")
    weights = WEIGHTS[family]
    built = manifest_path(repository)
    if built.is_file():
        manifest = json.loads(built.read_text(encoding="utf-8"))
        if (manifest.get("weights") or {}).get("sha256") == sha256(weights):
            stages.console.print(line(DONE, f" {repository} is up to date"), soft_wrap=True)
            return
        network = (manifest.get("network") or {}).get("name")
        if network != variant.name:
            raise CodetrError(
                f"{repository} holds an engine of {network}, not the demo's {variant.name}, and would be replaced; "
                "name another --output"
            )
    options = BuildOptions(variant, InputSpec(*variant.input_size, MAX_BATCH_SIZE), weights, overwrite=True)
    build_repository(options, repository, stages)
