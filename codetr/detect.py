"""`codetr detect`: pictures or a video in, annotated ones and boxes out, from a running server."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.access import RETRIES, URL_HELP, CaFile, CertificateFile, HeaderFile, KeyFile, Retries, ServerName, access
from codetr.labels import names_for, read_labels
from codetr.shown import line, new_console, progress_bar, shown
from codetr.unused import refuse_unused
from serving.errors import CodetrError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from codetr.video import Answer, Pace
    from codetr_client.files import Detected, Detector, Failed

# More images than this are summarised, one line an image.
MAX_IMAGES_IN_FULL = 5


# Frames of a video under way at a time, if not given: Triton makes batches of them.
CONCURRENCY = 4


def detect(
    output: Annotated[Path, typer.Option(help="Folder for what is annotated, and for the JSON.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or globs; or one video: a file, or a stream's url.", metavar="[IMAGE]..."),
    ] = None,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
    protocol: Annotated[
        Literal["grpc", "http"] | None, typer.Option(help="How to talk to the server; the url's, else grpc.")
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score shown.")] = 0.3,
    labels: Annotated[
        str | None,
        typer.Option(help="Class names: a file with one a line, or 'coco'; the server's own if not given."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 60.0,
    model: Annotated[str, typer.Option(help="Name of the ensemble on the server.")] = "codetr",
    camera: Annotated[int | None, typer.Option(min=0, help="Number of a camera of this machine, as a video.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Of a video, each N-th frame.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Of a video, end after so many frames.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=256, help=f"Frames of a video under way at a time; {CONCURRENCY} if not given."),
    ] = None,
    retries: Retries = RETRIES,
    header_file: HeaderFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
) -> None:
    """Detect objects in pictures or in a video with a running server."""
    from codetr.video import Pace
    from codetr_client.files import find_images
    from codetr_client.outputs import check_folder

    check_folder(output)
    video = video_named(images or [], camera)
    if video is None:
        refuse_unused(" on pictures", every=every, max_frames=max_frames, concurrency=concurrency)
    paths = find_images(images or []) if video is None else []
    names = read_labels(labels)
    console = new_console()
    reach = access(header_file, ca_file, certificate_file, key_file, server_name, retries)
    with replace(reach, retries=0).client(url, protocol, timeout, None, model) as first:
        first.check()  # a server that is away is said to be so at once
        if names is not None:
            names_for(labels, names, first.class_names())
    with reach.client(url, protocol, timeout, names, model) as client:
        if video is None:
            detect_pictures(client, paths, output, score_threshold, console)
        else:
            pace = Pace(every or 1, max_frames, concurrency or CONCURRENCY)
            detect_frames(client, video, output, score_threshold, pace, console)


def detect_pictures(
    client: Detector, paths: Sequence[Path], output: Path, score_threshold: float, console: Console
) -> None:
    """Detect on files and print a table; raises CodetrError in the end if one failed."""
    from codetr_client.files import RESULTS_NAME, detect_files

    with progress_bar(console) as progress:
        task = progress.add_task("detecting", total=len(paths))
        results = detect_files(client, paths, output, score_threshold, lambda result: progress.advance(task))
    console.print(results_table(results))
    console.print(line(f"pictures and {RESULTS_NAME} are in {output}"), soft_wrap=True)
    raise_failures(results)


def video_named(images: Sequence[str], camera: int | None) -> str | int | None:
    """Return the video that a command names, a camera by its number; None if it names pictures.

    Raises CodetrError for more than one video, for a video among pictures, and for nothing at all.
    """
    from codetr.video_source import is_video

    if camera is not None and not images:
        return camera
    videos = [name for name in images if is_video(name)]
    if not images or (videos and len(images) > 1) or camera is not None:
        named = ", ".join([*images, *([] if camera is None else [f"camera {camera}"])]) or "nothing"
        raise CodetrError(f"{named} was given; expected pictures, or one video or --camera alone")
    return videos[0] if videos else None


@dataclass
class Tally:
    """What came of a video so far: frames answered, failed ones with the first reason, detections by class."""

    frames: int = 0
    failed: int = 0
    first_failure: str = ""
    classes: Counter[str] = field(default_factory=Counter)
    start: float = field(default_factory=time.monotonic)

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.frames += 1
        if isinstance(answer.result, CodetrError):
            self.failed += 1
            self.first_failure = self.first_failure or f"frame {answer.frame.number}: {answer.result}"
        else:
            self.classes.update(answer.result.names)

    def summary(self, dropped: int) -> str:
        """Return one line."""
        rate = self.frames / max(time.monotonic() - self.start, 1e-3)
        numbers = [f"{self.frames} frames", f"{rate:.1f} frames/s"]
        numbers += [f"{count} {what}" for count, what in ((self.failed, "failed"), (dropped, "dropped")) if count]
        return ", ".join(numbers)


def detect_frames(
    client: Detector, video: str | int, output: Path, score_threshold: float, pace: Pace, console: Console
) -> None:
    """Detect on a video and print what came of it; raises CodetrError in the end if frames failed or it broke off."""
    from codetr.video import detect_video
    from codetr.video_source import VideoSource

    tally = Tally()
    with VideoSource(video) as source:
        try:
            with progress_bar(console) as progress:
                task = progress.add_task("detecting", total=pace.planned(source.count))

                def show(answer: Answer) -> None:
                    tally.add(answer)
                    progress.update(task, advance=1, description=tally.summary(source.dropped))

                detect_video(client, source, output, score_threshold, pace, show)
        finally:  # a camera ends by Ctrl-C
            if tally.frames:
                classes = ", ".join(f"{count} {name}" for name, count in tally.classes.most_common())
                console.print(line(f"{tally.summary(source.dropped)}: {classes or 'nothing found'}"), soft_wrap=True)
                console.print(line(f"{source.stem}.mp4 and {source.stem}.jsonl are in {output}"), soft_wrap=True)
    failures = [] if not tally.failed else [f"{tally.failed} of {tally.frames} frames failed, {tally.first_failure}"]
    faults = failures + ([] if (fault := source.fault()) is None else [fault])
    if faults:
        raise CodetrError("; ".join(faults))


def results_table(results: Sequence[Detected | Failed]) -> Table:
    """Return the table to print: a row a detection for a few images, a row an image for many."""
    from rich.table import Table

    from codetr_client.files import Failed

    table = Table("image", "class", "score", "box (x1 y1 x2 y2)")
    full = len(results) <= MAX_IMAGES_IN_FULL
    if not full:
        table = Table("image", "detections", "classes")
    for result in results:
        name = shown(result.path.name)
        if isinstance(result, Failed):
            table.add_row(name, "failed")
        elif full:
            _add_detections(table, result)
        else:
            classes = Counter(result.detections.names)
            table.add_row(
                name, str(len(result.detections)), shown(", ".join(f"{n} {c}" for c, n in classes.most_common()))
            )
    return table


def _add_detections(table: Table, result: Detected) -> None:
    found = sorted(result.detections.to_json(), key=lambda detection: -detection["score"])
    for detection in found:
        box = " ".join(f"{side:.1f}" for side in detection["box"])
        table.add_row(shown(result.path.name), shown(detection["name"]), f"{detection['score']:.3f}", box)
    if not found:
        table.add_row(shown(result.path.name), "nothing found")


def raise_failures(results: Sequence[Detected | Failed]) -> None:
    """Raise CodetrError that names every image that failed and why, if one did."""
    from codetr_client.files import Failed

    failures = [result for result in results if isinstance(result, Failed)]
    if failures:
        reasons = "; ".join(f"{failure.path.name}: {failure.error}" for failure in failures)
        raise CodetrError(f"{len(failures)} of {len(results)} images failed: {reasons}")
