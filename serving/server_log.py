"""What tritonserver's log says about a start that failed; written for 2.51."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from serving.errors import CodetrError

_FAILED_MODEL = re.compile(r"failed to load '(?P<model>[^']+)' version -?\d+: (?:\w+(?: \w+)*: )?(?P<reason>.*?)\"?$")
_FAILED_CONFIG = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*?)\"?$")
_FAILED_REPOSITORY = re.compile(r"failed to (?:load|poll) (?:all models|model repository)[^:]*: ?(?P<reason>.*)")
_FAILED_SOCKET = re.compile(r"Socket '(?P<socket>[^']+)' already in use")
_REFUSED_OPTION = re.compile(
    r"(?:unrecognized option|option '[^']*' (?:requires|is ambiguous|doesn't)|Unexpected argument)"
)
_BAD_OPTION = re.compile(r"Bad option: \"(?P<option>[^\"]*)\"")
_ENDPOINT = re.compile(r"\] \"?Started HTTPService at ")
_LOADING = re.compile(r'\] "loading: (?P<model>.+):\d+"$')
_LOADED = re.compile(r"successfully loaded '(?P<model>[^']+)'")
_WAITS_FOR_REQUESTS = "Waiting for in-flight requests to complete"
_DRAINED = "All models are stopped, unloading models"
_INSTANCE = re.compile(r"TRITONBACKEND_ModelInstanceInitialize: (?P<instance>\S+)")
_TRITON_LINE = re.compile(r"[IWEF]\d{4} |[+|]")
_LOG_WARNING = re.compile(r"[WEF]\d{4} (?P<time>[\d:]*)(?:\.\d+ +\d+ \S+:\d+\] )?")
# That there is no GPU, and what the next line says with the model's name.
_NO_NEWS = re.compile(
    r"unable to create stream for \S+: (?:CUDA driver version is insufficient|no CUDA-capable device)"
    r"|ERROR: Failed to create instance: "
    r"|ignore version directory 'verification'"  # the pictures that `codetr build` leaves beside an engine
)
# An exception of a Python step goes on so; in the log with escapes.
_STACK = re.compile(r"(?:\s|\\n)*(?:\n|\\n)At:(?:\n|\\n).*", re.DOTALL)
_OUR_ERROR = re.compile(rf"(?:^|(?<=: )){CodetrError.__name__}: ")
_ESCAPED = re.compile(r"\\([\"\\])|\\[ntr]|\n")
_UNHEALTHY = re.compile(r"Stub process '[^']*' is not healthy")
_REPEAT_SECONDS = 60.0
_NONE: Mapping[str, int] = MappingProxyType({})

# What a process's end by a signal most often means here.
_SIGNALS = {
    signal.SIGKILL: "most likely because the machine's or the container's memory ran out",
    signal.SIGBUS: "most likely because /dev/shm is full; give a container more (docker run --shm-size 1g)",
    signal.SIGSEGV: "a fault in a library that it loaded",
    signal.SIGILL: "an instruction that this CPU does not have",
    signal.SIGABRT: "see the line before",
}

# What to do about reasons that say it to few.
_ADVICE = (
    (
        r"unable to find backend library for backend 'tensorrt'",
        "use the image, or build the plan for the Python backend",
    ),
    (r"CUDA driver version is insufficient|no CUDA-capable device|libcuda\.so", "there is no GPU or no driver here"),
    (
        r"CUDA out of memory|cudaErrorMemoryAllocation|OutOfMemory",
        "the GPU's memory is full; nvidia-smi lists who has it",
    ),
    (r"bad_alloc|Cannot allocate memory|MemoryError", "this machine's memory is full"),
    (r"Unable to initialize shared memory key", "/dev/shm is full"),
    (
        _UNHEALTHY.pattern,
        "its process ended; where no line before says why, most likely because memory ran out",
    ),
    # Triton 2.51 waits 10 s for a lock that a step holds, and then ends.
    (r"interprocess::lock_exception", "the machine was too busy to load a step; free cores and repeat it"),
)


def cause(text: str) -> str:
    """Return what Triton says of a fault as one sentence: without the lines of Python's stack, without escapes.

    A Python step's exception comes as `TYPE: MESSAGE`, an empty line and `At:` with files and lines of code, in a
    line of the log with escapes for quotes and ends of lines.
    """
    sentence = _OUR_ERROR.sub("", _STACK.sub("", text))
    return _ESCAPED.sub(lambda match: match[1] or " ", sentence).strip()


class News:
    """What of a server's log is worth showing: warnings and errors, each as one sentence, and not again and again."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def of(self, line: str, now: float) -> str | None:
        """Return what to show of a line at a monotonic time in seconds, or None."""
        match = _LOG_WARNING.match(line)
        if match is None or _NO_NEWS.search(line):
            return None
        said = cause(line[match.end() :].strip().strip('"'))
        if now - self._shown.get(said, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return None
        self._shown = {each: at for each, at in self._shown.items() if now - at < _REPEAT_SECONDS}
        self._shown[said] = now
        return f"{match['time']} {said}"


def failed_models(log: Iterable[str], ended: Mapping[str, int] = _NONE) -> dict[str, str]:
    """Return why each model failed that did, by its name.

    Args:
        log: the server's lines.
        ended: by a model's name the exit status of a process of it that was seen dead, negative for a signal. Triton
            itself does not say it.
    """
    found = (pattern.search(line) for line in log for pattern in (_FAILED_MODEL, _FAILED_CONFIG))
    return {match["model"]: _reason(cause(match["reason"]), ended.get(match["model"])) for match in found if match}


def in_words(failures: Mapping[str, str]) -> str:
    """Return what `failed_models` found as one line."""
    return "; ".join(f"model {model} failed to load: {reason}" for model, reason in failures.items())


def _reason(said: str, status: int | None) -> str:
    if status is None or not _UNHEALTHY.search(said):
        return _advised(said)
    return f"{said.rstrip('.')}: it {how_it_ended(status)}"


def _advised(reason: str) -> str:
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, reason)), None)
    return f"{reason} ({advice})" if advice else reason


def has_endpoints(log: Iterable[str]) -> bool:
    """Return whether the server listens, which it does when it has tried to load every model."""
    return any(map(_ENDPOINT.search, log))


def what_it_waits_for(log: Sequence[str]) -> str:
    """Return in words which models are still being loaded; without one the log's last line."""
    loaded = {match["model"] for match in map(_LOADED.search, log) if match}
    begun = dict.fromkeys(match["model"] for match in map(_LOADING.search, log) if match)
    left = [model for model in begun if model not in loaded]
    return f"{', '.join(left)} still being loaded" if left else last_line(log)


def waits_for_requests(log: Iterable[str]) -> bool:
    """Return whether a server that ends has closed its HTTP connections, and looks at its requests."""
    return any(_WAITS_FOR_REQUESTS in line for line in log)


def drained(log: Iterable[str]) -> bool:
    """Return whether a server that ends has answered every request it had."""
    return any(_DRAINED in line for line in log)


def why_it_ended(log: Sequence[str], status: int, ended: Mapping[str, int] = _NONE) -> str:
    """Return in one line why a server ended before it was ready.

    Args:
        log: its last lines.
        status: its exit status, negative for a signal.
        ended: as of `failed_models`.
    """
    failures = failed_models(log, ended)
    if failures:
        return in_words(failures)
    for line, following in zip(log, [*log[1:], ""], strict=False):
        if match := _FAILED_SOCKET.search(line):
            return f"the port of {match['socket']} is taken by another program; name another port"
        if _REFUSED_OPTION.search(line):
            return f"tritonserver refuses an option: {line.split('tritonserver: ')[-1].strip()}"
        if match := _BAD_OPTION.search(line):
            return f"tritonserver refuses the option {match['option']}: {following.strip()}"
        if match := _FAILED_REPOSITORY.search(line):
            return f"tritonserver cannot load the repository: {cause(match['reason'])}"
    said = complaint(log) if status < 0 else ""  # what a library says as it ends the process
    last = f"it said: {_advised(said)}" if said else f"its last line: {last_line(log)}"
    return f"tritonserver {how_it_ended(status)}; {last}"


def how_it_ended(status: int) -> str:
    """Return in words how a process ended, from its exit status, negative for a signal."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status)
    except ValueError:
        return f"was ended by signal {-status}"
    return f"was ended by {name.name}" + (f", {_SIGNALS[name]}" if name in _SIGNALS else "")


def complaint(log: Sequence[str]) -> str:
    """Return the last lines that are not Triton's own, such as those of a step's process or of the dynamic linker."""
    lines = [line.strip() for line in log if line.strip() and not _TRITON_LINE.match(line)]
    return " / ".join(lines[-2:])


def instances(log: Iterable[str]) -> list[str]:
    """Return the names of the instances of Python steps that the server has begun to load, in that order."""
    return [match["instance"] for match in map(_INSTANCE.search, log) if match]


def last_line(log: Sequence[str]) -> str:
    """Return the last line that is not empty."""
    return next((cause(line) for line in reversed(log) if line.strip()), "(nothing)")
