"""`codetr evaluate`: COCO AP and AR of a running server, of the PyTorch detector or of an ONNX engine."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from builder.precision import PRECISIONS
from codetr.access import RETRIES, URL_HELP, CaFile, CertificateFile, HeaderFile, KeyFile, Retries, ServerName, access
from codetr.config import ConfigOption, ExecuteOption, given_variant, read_variant
from codetr.device import check_device
from codetr.labels import names_for, read_labels
from codetr.shown import line, new_console, progress_bar, say, shown
from codetr.unused import refuse_unused
from serving.contract import ENSEMBLE
from serving.errors import CodetrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rich.table import Table

    from builder.family import DetectorConfig
    from builder.pipeline.coco import Matched
    from codetr_client.detections import Detections
    from perf.accuracy.dataset import Dataset
    from perf.accuracy.detectors import Detect, Setup

Source = Literal["server", "pytorch", "onnx"]
CONCURRENCY, TIMEOUT = 4, 60.0  # of a server: images, seconds
AGAINST = "against"  # folder of the other detector's results, in --output


def evaluate(
    annotations: Annotated[Path, typer.Option(help="COCO annotation file.")],
    images: Annotated[Path, typer.Option(help="Folder that its file names are relative to.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; an interrupted run continues from it.")],
    source: Annotated[Source, typer.Option(help="What detects.")] = "server",
    against: Annotated[
        Literal["pytorch"] | None, typer.Option(help="Compare with the PyTorch detector of --variant and --weights.")
    ] = None,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
    protocol: Annotated[
        Literal["grpc", "http"] | None, typer.Option(help="How to talk to the server; the url's, else grpc.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Images under way at a time.")] = CONCURRENCY,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = TIMEOUT,
    model: Annotated[str, typer.Option(help="Name of the ensemble on the server or in --repository.")] = ENSEMBLE,
    labels: Annotated[str | None, typer.Option(help="Class names: a file with one a line, or 'coco'.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="What detects; the repository's, else co_dino_demo, without it and --config.")
    ] = None,
    config: ConfigOption = None,
    execute_config: ExecuteOption = False,
    weights: Annotated[Path | None, typer.Option(help="Of the PyTorch detector; the demo's if not given.")] = None,
    precision: Annotated[str, typer.Option(help="Of the PyTorch detector: fp32, fp16 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="Of the PyTorch detector: cpu or cuda.")] = "cpu",
    repository: Annotated[
        Path | None,
        typer.Option(help="Of the engine that detects or is served; its manifest tells variant, size and rules."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    skip_missing: Annotated[bool, typer.Option(help="Leave out images that are not in --images.")] = False,
    retries: Retries = RETRIES,
    header_file: HeaderFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
) -> None:
    """Measure COCO accuracy; killed and started again, it goes on where it was."""
    from codetr_client.outputs import check_folder
    from perf.accuracy.agreement import draw_worst
    from perf.accuracy.dataset import category_of_label, read_dataset
    from perf.accuracy.detectors import built_variant, onnx_detect, open_server, served_engine, server_setup
    from perf.accuracy.identity import identity_of_onnx, identity_of_server
    from perf.accuracy.scores import check_output

    check_folder(output)  # before a file of annotations is read
    reach = access(header_file, ca_file, certificate_file, key_file, server_name, retries)
    _refuse_unused(
        source,
        against is not None,
        repository is not None,
        of_server={
            "url": url,
            "protocol": protocol,
            "concurrency": concurrency != CONCURRENCY,
            "timeout": timeout != TIMEOUT,
            "retries": retries != RETRIES,
            "header_file": header_file,
            "ca_file": ca_file,
            "certificate_file": certificate_file,
            "key_file": key_file,
            "server_name": server_name,
        },
        of_pytorch={"weights": weights, "precision": precision != "fp32", "device": device != "cpu"},
        of_network={"variant": variant, "config": config},
        of_engine={"model": model != ENSEMBLE},
    )
    given_names = read_labels(labels)
    console = new_console()
    dataset = read_dataset(annotations, images, limit, skip_missing)
    _note(dataset.coco.notes)
    sources = [
        annotations,
        weights,
        *([] if labels is None else [Path(labels)]),
        *(each.path for each in dataset.images),
    ]
    check_output(output, sources)
    if against is not None:
        check_output(output / AGAINST, sources)
    server = url, protocol, timeout, model, reach
    built = None
    if repository is not None:
        built = built_variant(repository, served_engine(repository, *server) if source == "server" else model)
    given = _given(variant, config, execute_config)
    pytorch = _PyTorch(given, built, weights, precision, device)
    if source == "server":
        make, own_names = open_server(*server)
        names = names_for(labels, given_names, own_names)
        if built is None and (against is not None or given is not None):
            pytorch.setup = server_setup(*server)
        name = f"server {model}"
        identity = identity_of_server(*server)
    elif source == "onnx":
        if repository is None:
            raise CodetrError("--source onnx needs --repository, the folder that `codetr build` wrote")
        detect, own_names = onnx_detect(repository, model)
        names = names_for(labels, given_names, own_names)
        make, name, concurrency, identity = (lambda: detect), "onnx", 1, identity_of_onnx(repository, model)
    else:
        make, own_names = pytorch.load()
        names = names_for(labels, given_names, own_names)
        name, concurrency, identity = pytorch.name, 1, pytorch.identity()
    matched = category_of_label(dataset, names)
    _note(matched.notes)
    found, result = _measure(dataset, name, identity, make, names, matched, output, console, concurrency)
    console.print(class_table(result))
    console.print(line(summary_line(result)), soft_wrap=True)
    if given is not None or built is not None:
        _compare_published(result["ap"], dataset, pytorch, console)
    if against is not None:
        make, own_names = pytorch.load()
        names = names_for(labels, given_names, own_names)
        matched = category_of_label(dataset, names)
        beside = output / AGAINST
        expected, other = _measure(dataset, pytorch.name, pytorch.identity(), make, names, matched, beside, console)
        difference = result["ap"] - other["ap"]
        console.print(line(f"AP {name} - {pytorch.name}: {difference:+.4f}"), soft_wrap=True)
        for path, value in draw_worst(dataset, found, expected, output / "worst"):
            console.print(line(f"agreement {value:.3f}  {path}"), soft_wrap=True)
    console.print(line(f"results are in {output}"), soft_wrap=True)


def _refuse_unused(
    source: Source,
    against: bool,
    repository: bool,
    *,
    of_server: Mapping[str, Any],
    of_pytorch: Mapping[str, Any],
    of_network: Mapping[str, Any],
    of_engine: Mapping[str, Any],
) -> None:
    """Refuse options that have no effect with a source, and without --against or --repository."""
    here = f" with --source {source}"
    if source != "server":
        refuse_unused(here, **of_server)
    if source == "pytorch" and not repository:
        refuse_unused(f"{here} and no --repository", **of_engine)
    if source != "pytorch" and not against:
        refuse_unused(here, **of_pytorch)
    if source == "onnx" and not against:
        refuse_unused(here, **of_network)


def _note(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}", err=True)


def _given(name: str | None, config: Path | None, execute: bool) -> DetectorConfig | None:
    """Return the network that the options name; None if they name none."""
    if name is None and config is None:
        return read_variant(config, execute)  # says that --execute-config alone is without effect
    return given_variant(name, config, execute, "--variant")


def _compare_published(ap: float, dataset: Dataset, pytorch: _PyTorch, console: Any) -> None:
    """Print the published AP of the variant beside the measured one, if it has one."""
    from perf.accuracy.published import verdict

    variant = pytorch.variant
    if variant.box_ap is not None:
        size = pytorch.setup[:2] if pytorch.setup else variant.input_size
        text = verdict(ap, variant.box_ap, variant.real_classes, dataset, size, variant.input_size)
        console.print(line(text), soft_wrap=True)


class _PyTorch:
    """The in-process detector that the options describe, loaded when it is needed."""

    def __init__(
        self,
        given: DetectorConfig | None,
        built: tuple[DetectorConfig, Setup] | None,
        weights: Path | None,
        precision: str,
        device: str,
    ) -> None:
        from builder.co_dino.presets import DEMO_VARIANT
        from builder.variants import get_variant

        if precision not in PRECISIONS:
            raise CodetrError(f"--precision {precision!r} is not known; expected {', '.join(PRECISIONS)}")
        self.variant = given or (get_variant(DEMO_VARIANT) if built is None else built[0])
        self.setup = None if built is None else built[1]  # of the engine that it is measured beside
        self.weights, self.device = weights, check_device(device)
        self.precision = PRECISIONS[precision]
        self.name = f"pytorch {self.variant.name} {precision} {device}"

    def load(self) -> tuple[Callable[[], Detect], tuple[str, ...]]:
        """Return a maker of the detector and its class names."""
        from perf.accuracy.detectors import pytorch_detect

        detect, names = pytorch_detect(self.variant, self._weights(), self.precision, self.device, self.setup)
        return lambda: detect, names

    def identity(self) -> str:
        """Return what decides its answers."""
        from perf.accuracy.identity import identity_of_pytorch

        return identity_of_pytorch(self.variant, self._weights(), self.setup)

    def _weights(self) -> Path:
        from demo import WEIGHTS

        shipped = {f"{family}_demo": path for family, path in WEIGHTS.items()}
        weights = self.weights or shipped.get(self.variant.name)
        if weights is None:
            raise CodetrError(f"the variant {self.variant.name} needs --weights, its checkpoint")
        return weights


def _measure(
    dataset: Dataset,
    name: str,
    identity: str,
    make: Callable[[], Detect],
    class_names: tuple[str, ...],
    matched: Matched,
    folder: Path,
    console: Any,
    concurrency: int = 1,
) -> tuple[Mapping[int, Detections], dict[str, Any]]:
    """Return what a detector finds in all images, and its figures; both are also in the folder."""
    from perf.accuracy.collect import collect
    from perf.accuracy.scores import RESULTS, report

    with _bar(console, name, len(dataset.images)) as advance:
        found = collect(dataset, folder / RESULTS, name, make, class_names, concurrency, advance, identity)
    return found, report(dataset, name, found, matched, folder)


@contextmanager
def _bar(console: Any, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar that is told how many images are done."""
    with progress_bar(console) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.update(task, completed=done)


def class_table(result: Mapping[str, Any]) -> Table:
    """Return the table of the classes' AP and AP50."""
    from rich.table import Table

    table = Table("class", "AP", "AP50")
    for name, figures in result["classes"].items():
        table.add_row(shown(name), f"{figures['ap']:.3f}", f"{figures['ap50']:.3f}")
    return table


def summary_line(result: Mapping[str, Any]) -> str:
    """Return one parsable line of the figures of all classes."""
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    figures = "  ".join(f"{name}={result[name]:.4f}" for name in names)
    return f"{result['source']}: images={result['images']}  {figures}"
