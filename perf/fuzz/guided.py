"""Files that coverage chooses: atheris keeps what reaches new lines of decoding, and mutates that further.

It needs atheris, which is no dependency of the project because it has no wheels for every Python:

    python -m pip install atheris
    python -m perf.fuzz.guided --output runs/bench/fuzz --seconds 120

Lines of Python count, those of this project and of Pillow; what OpenCV does stays unseen.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from codetr_client.outputs import make_folder
from perf.machine import header
from perf.records import write_record
from serving.errors import CodetrError

RECORD = "fuzz-guided.json"
_MODULES = ("PIL", "codetr_client", "serving")


def run(seconds: int, seed: int, output: Path) -> dict[str, Any]:
    """Let a child process follow coverage for so long, and return the content of `output`/fuzz-guided.json.

    Raises:
        CodetrError: there is no atheris.
    """
    corpus = output / "corpus"
    make_folder(corpus)
    command = [sys.executable, "-m", "perf.fuzz.guided", "--child", "--output", str(output), "--seed", str(seed)]
    done = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    if any("No module named 'atheris'" in line for line in lines):
        raise CodetrError("coverage needs atheris: python -m pip install atheris")
    counts = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("count "))
    last = next((line for line in reversed(lines) if "cov: " in line), "")
    words = last.replace("cov: ", "cov:").split()
    record = {
        **header("fuzz guided by coverage"),
        "seed": seed,
        "seconds": seconds,
        "status": done.returncode,
        "files": {name: int(count) for name, count in counts.items()},
        "lines_and_branches": next((int(word[4:]) for word in words if word.startswith("cov:")), None),
        "corpus": len(list(corpus.iterdir())),
        "what_failed": lines[-30:] if done.returncode else [],
    }
    write_record(record, output, RECORD)
    return record


def _follow_coverage(seconds: int, seed: int, output: Path) -> None:
    """What the child does: libFuzzer's loop, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(_MODULES)):
        from perf.fuzz.outcomes import judge
        from perf.fuzz.sandbox import Limits
    from perf.fuzz.mutations import blind, structured
    from perf.fuzz.pieces import FORMATS
    from perf.fuzz.sources import sources

    counts: Counter[str] = Counter()
    limits = Limits()
    whole = [data for files in sources().values() for data in files.values()]
    end = time.monotonic() + seconds

    def mutate(data: bytes, largest: int, number: int) -> bytes:
        random = Random(number)
        form, other = random.choice(FORMATS), random.choice(whole)
        try:
            changed = (
                structured(form, data or other, other, random) if random.random() < 0.5 else blind(data, other, random)
            )
        except Exception:  # no file of that format any more
            changed = blind(data, other, random)
        return bytes(changed[:largest])

    def one(data: bytes) -> None:
        if time.monotonic() > end:
            for name, count in counts.items():
                print("count", name, count, flush=True)
            os._exit(0)  # libFuzzer takes any other end for a fault
        outcome = judge(data, limits.size, limits.rule, limits.images)
        counts[outcome.kind] += 1
        if outcome.is_fault:
            raise AssertionError(f"{outcome.kind}: {outcome.message}")

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    corpus = output / "corpus"
    for number, data in enumerate(whole):
        (corpus / f"source-{number}").write_bytes(data)
    options = [
        "-max_len=20000",
        "-timeout=60",
        "-rss_limit_mb=4096",
        f"-seed={seed or 1}",
        f"-artifact_prefix={output}/",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Parse, then run; the child is this module again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/fuzz"))
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _follow_coverage(given.seconds, given.seed, given.output)
        return
    record = run(given.seconds, given.seed, given.output)
    print(record["files"], record["lines_and_branches"])


if __name__ == "__main__":
    main()
