"""Which settings of a repository and of its clients are measured: one is varied at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from codetr_client.wire import Protocol

# The largest batch of every repository measured.
MAX_BATCH_SIZE = 8
# Milliseconds that the detector waits for more requests, where the wait is measured.
QUEUE_DELAY_MS = 5.0
PICTURES = ((640, 480), (1280, 720), (1920, 1080), (4000, 3000))


@dataclass(frozen=True)
class Case:
    """A repository and how it is asked.

    width and height: the engine's; batch: images in a request; dynamic_batching and delay_ms: the detector's;
    preprocess and postprocess: instances; picture: (width, height) of the JPEG that is sent; guests: instances of the
    detector that share the engine of the first.
    """

    width: int
    height: int
    batch: int = 1
    dynamic_batching: bool = True
    delay_ms: float = 0.0
    preprocess: int = 2
    postprocess: int = 2
    protocol: Protocol = "grpc"
    picture: tuple[int, int] = (1280, 720)
    guests: int = 0

    @property
    def name(self) -> str:
        """All settings in one line."""
        batching = f"delay {self.delay_ms:g} ms" if self.dynamic_batching else "no dynamic batching"
        return (
            f"{self.width}x{self.height}, batch {self.batch}, {batching}, {self.preprocess}+{self.postprocess} "
            f"instances, {self.protocol}, {self.picture[0]}x{self.picture[1]} JPEG"
            + (f", {self.guests} guests" if self.guests else "")
        )


@dataclass(frozen=True)
class CostPlan:
    """What to measure: sizes are (width, height); batches, images in a request; preprocess, instances.

    cost_ms: of the engine, a batch. concurrency: the higher of the two loads; the other is 1. repeats: passes over a
    case's loads; their spread is the error of the figures. window: seconds, three a load.
    """

    cost_ms: float = 30.0
    sizes: tuple[tuple[int, int], ...] = ((608, 608), (1152, 768), (1920, 1280))
    batches: tuple[int, ...] = (1, 4)
    preprocess: tuple[int, ...] = (1, 2, 4)
    concurrency: int = 8
    repeats: int = 2
    window: float = 1.5


def groups(plan: CostPlan) -> dict[str, dict[str, Case]]:
    """Return the cases by what is varied, and by its value; a case may stand in several groups."""
    base = Case(*middle(plan.sizes))
    return {
        "Input size and images in a request": {
            f"{width}x{height}, {batch}": replace(base, width=width, height=height, batch=batch)
            for width, height in plan.sizes
            for batch in plan.batches
        },
        "Dynamic batching of the detector": {
            "off": replace(base, dynamic_batching=False),
            "on, no delay": base,
            f"on, delay {QUEUE_DELAY_MS:g} ms": replace(base, delay_ms=QUEUE_DELAY_MS),
        },
        "Instances that share the engine without batching": {
            str(1 + n): replace(base, dynamic_batching=False, guests=n) for n in (0, 1)
        },
        "Instances of codetr_preprocess": {str(n): replace(base, preprocess=n) for n in plan.preprocess},
        "Instances of codetr_postprocess": {str(n): replace(base, postprocess=n) for n in (1, 2)},
        "Protocol": {"gRPC": base, "HTTP": replace(base, protocol="http")},
        "JPEG sent": {f"{width}x{height}": replace(base, picture=(width, height)) for width, height in PICTURES},
    }


def middle(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the size in the middle by number of pixels, the larger of two."""
    return sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]


def cases(plan: CostPlan) -> list[Case]:
    """Return every case once, in the order of the groups."""
    return list(dict.fromkeys(case for group in groups(plan).values() for case in group.values()))
