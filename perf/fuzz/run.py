"""Counts what mutated files do to decoding and pre-processing, each format in processes of its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codetr_client.outputs import make_folder, write_whole
from perf.fuzz.outcomes import Kind
from perf.fuzz.pieces import FORMATS, Format
from perf.fuzz.sandbox import Limits, Made, Result, judged
from perf.machine import header
from perf.records import write_record
from serving.rules import Pixels

RECORD = "fuzz-in-process.json"
FAULTS_FOLDER = "faults"  # the files, beside the record
# Files that one process judges; its peak of memory is theirs.
_CHUNK = 2500
# Both ways in which the families' images are resized: OpenCV's and Pillow's.
RULES = (Pixels(), Pixels("stretch", antialias=True))


@dataclass
class Tally:
    """What happened to the files of one format."""

    groups: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    slowest: Result | None = None
    largest: Result | None = None  # the file at which a process's memory rose the highest
    faults: list[Result] = field(default_factory=list)
    smallest: dict[str, Result] = field(default_factory=dict)  # by the outcome in the decoders' own words

    def add(self, result: Result) -> None:
        """Count one file."""
        outcome = result.outcome
        self.groups[outcome.group] += 1
        self.kinds[outcome.kind] += 1
        self.seconds.append(outcome.seconds)
        if self.slowest is None or outcome.seconds > self.slowest.outcome.seconds:
            self.slowest = result
        if self.largest is None or result.peak > self.largest.peak:
            self.largest = result
        if outcome.is_fault:
            self.faults.append(result)
        known = self.smallest.get(outcome.words)
        if known is None or result.size < known.size:
            self.smallest[outcome.words] = result

    def to_json(self) -> dict[str, Any]:
        """Return the counts, times in seconds and memory in MB; JSON-ready."""
        assert self.slowest is not None
        assert self.largest is not None
        refusals = {group: count for group, count in self.groups.most_common() if group.startswith("refused")}
        return {
            "files": len(self.seconds),
            "accepted": self.kinds["accepted"],
            "refused": self.kinds["refused"],
            "faults": {kind: count for kind, count in self.kinds.items() if kind not in ("accepted", "refused")},
            "refused_by_message": {group.partition(": ")[2]: count for group, count in refusals.items()},
            "seconds": {**times(self.seconds), "slowest": _name(self.slowest)},
            "peak_memory_mb": round(self.largest.peak / 1e6),
            "largest": _name(self.largest),
            "what_failed": [{**_name(each), **asdict(each.outcome)} for each in self.faults],
        }


def times(seconds: Sequence[float]) -> dict[str, float]:
    """Return the sum, the median, the 99th percentile and the longest of seconds."""
    median, p99 = np.percentile(seconds, (50, 99))
    return {
        "total": round(sum(seconds), 1),
        "median": round(median, 6),
        "p99": round(p99, 4),
        "max": round(max(seconds), 4),
    }


def _name(result: Result) -> dict[str, Any]:
    assert isinstance(result.file, Made)
    return {"number": result.file.number, "seed": result.file.seed}


def run(
    files: int,
    seed: int,
    output: Path,
    formats: Sequence[Format] = FORMATS,
    workers: int = 2,
    keep: Path | None = None,
    on_progress: Callable[[int, int], object] = lambda done, faults: None,
) -> dict[str, Any]:
    """Judge `files` mutated files of each format, and return the content of `output`/fuzz-in-process.json.

    Args:
        files: of each format.
        seed: with a file's number and format it decides the file.
        output: gets the record, and the files that were faults in a folder of their own.
        formats: which.
        workers: processes at a time.
        keep: gets the smallest file of every distinct outcome.
        on_progress: called with the files judged and the faults found until then.
    """
    tallies = {form: Tally() for form in formats}
    for done, result in enumerate(all_judged(files, seed, formats, workers), 1):
        assert isinstance(result.file, Made)
        tallies[result.file.form].add(result)
        if result.outcome.is_fault:
            keep_fault(output, result, result.outcome.kind)
        on_progress(done, sum(len(tally.faults) for tally in tallies.values()))
    if keep is not None:
        keep_smallest(tallies, keep)
    record = to_record(seed, tallies)
    write_record(record, output, RECORD)
    return record


def all_judged(files: int, seed: int, formats: Sequence[Format], workers: int) -> Iterator[Result]:
    """Yield what happens to the files of every format, from several processes at a time."""

    def chunk(form: Format, start: int) -> list[Result]:
        made = [Made(form, seed, number) for number in range(start, min(files, start + _CHUNK))]
        return list(judged(made, Limits(rule=RULES[start // _CHUNK % len(RULES)])))

    chunks = [(form, start) for start in range(0, files, _CHUNK) for form in formats]
    with ThreadPoolExecutor(workers) as pool:  # the threads only wait for their processes
        for done in as_completed([pool.submit(chunk, *each) for each in chunks]):
            yield from done.result()


def keep_fault(output: Path, result: Result, fault: str) -> None:
    """Write a file that was a fault beside the record."""
    assert isinstance(result.file, Made)
    file = result.file
    make_folder(output / FAULTS_FOLDER)
    write_whole(output / FAULTS_FOLDER / f"{file.form}-{file.seed}-{file.number}-{fault}", file.data())


def keep_smallest(tallies: Mapping[Format, Tally], folder: Path) -> None:
    """Write the smallest file of every distinct outcome, with the decoders' own words, by format and a short name."""
    make_folder(folder)
    for form, tally in tallies.items():
        for words, result in tally.smallest.items():
            name = hashlib.sha256(words.encode()).hexdigest()[:8]
            write_whole(folder / f"{form}-{name}.bin", result.file.data())


def to_record(seed: int, tallies: Mapping[Format, Tally]) -> dict[str, Any]:
    """Return the content of fuzz-in-process.json; JSON-ready."""
    limits = Limits()
    formats = {form: tally.to_json() for form, tally in tallies.items()}
    return {
        **header("fuzz in process"),
        "seed": seed,
        "limits": {
            "seconds": limits.seconds, "address_space_mb": limits.memory >> 20,
            "engine": list(limits.size), **asdict(limits.images),
        },
        "files": sum(each["files"] for each in formats.values()),
        "faults": sum(len(tally.faults) for tally in tallies.values()),
        "formats": formats,
    }  # fmt: skip
