"""Watches the Python steps of a running server, and has those loaded anew that have died or stand still.

Triton 2.51 calls a server ready whose steps are dead, and later releases start none again either. A step is a process
of its own, a child of the server: that it is dead or stopped stands in /proc, and since when it has been at work on the
board of `serving.board`. A busy step is not one that stands still: it ends its work and begins other.

Triton gives the instances of a group the same name on each GPU, so a process is told from another by its id. Those that
come after a load was asked for take the places of those that were there then; any other is one more.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.board import Board, Work, is_alive, process_fields
from serving.model_config import Message, read_model_config
from serving.stubs import Stub, stubs_of
from serving.view import reload

# How long a step may be at work: so many seconds, or so many times its longest work so far if that is more.
STANDSTILL_SECONDS = 60.0
_STANDSTILL_TIMES = 10.0
_TICK = 0.2
_LOOK_FOR_NEW = 1.0
# Between tries to load a step that dies again and again, each time within so many seconds.
_SHORT_LIFE = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0
# A server that is told to load a step starts its process within a second or two, if it loads no other meanwhile.
_UNHEARD_SECONDS = 20.0
# Steps that work beside a dead one are replaced with it; Triton 2.51 forgets to end them. Until the new ones are loaded
# it answers with them: this comes on top of what a load may take.
_SUPERSEDED_SECONDS = 30.0


@dataclass
class _Model:
    """A model of the server and the processes that answer for it, by process id.

    `expected` is how many names of instances there are: one that dies before it was seen is missed, unless its name is
    seen on another GPU.
    """

    expected: int
    current: dict[int, Stub] = field(default_factory=dict)
    superseded: dict[int, float] = field(default_factory=dict)  # since when, by process id
    outgoing: set[int] = field(default_factory=set)  # who was there when a load was asked for
    siblings: Counter[str] = field(default_factory=Counter)  # how many of a name that were
    is_told_twice: bool = False  # before it was heard: two loads may follow each other
    stopped: set[int] = field(default_factory=set)
    seen: float = 0.0  # when its newest process was
    is_faulty: bool = False
    tries: int = 0
    next_try: float = 0.0
    unheard_since: float | None = None

    def replace(self, process: Stub, now: float) -> None:
        """Take a new process for current, in place of those of its name that its load replaces."""
        same = [pid for pid, each in self.current.items() if each.instance == process.instance]
        replaced = [pid for pid in same if pid in self.outgoing]
        if not replaced and self.is_told_twice and 0 < self.siblings[process.instance] <= len(same):
            replaced = same  # the first load is complete, and this is the second
        for pid in replaced:
            self.superseded[pid] = now
            del self.current[pid]
        self.current[process.pid] = process

    def ask(self, now: float) -> None:
        """Note that a load is asked for, which replaces who is here now."""
        self.is_told_twice = self.unheard_since is not None
        if self.unheard_since is None:
            self.unheard_since, self.outgoing = now, set(self.current)
            self.siblings = Counter(each.instance for each in self.current.values())


class Watchdog:
    """Watches one server; `look` does it once.

    Args:
        server: the process id of tritonserver.
        folder: its private folder, with the board.
        models: what it loads, see `serving.view`.
        report: called with one line for what happens.
        load_seconds: how long the server took to load everything.
        standstill_seconds: how long a step may be at work, if it never was longer.
    """

    def __init__(
        self,
        server: int,
        folder: Path,
        models: Path,
        report: Callable[[str], object],
        load_seconds: float = 0.0,
        standstill_seconds: float = STANDSTILL_SECONDS,
    ) -> None:
        self._server, self._models_folder, self._report = server, models, report
        self._board = Board(folder)
        self._patience = _UNHEARD_SECONDS + 2 * load_seconds
        self._superseded = _SUPERSEDED_SECONDS + 2 * load_seconds
        self._standstill = standstill_seconds
        self._models: dict[str, _Model] = {}
        self._dropped: set[Stub] = set()  # processes of models that were watched or loaded before
        self.adopt(sorted(path.parent.name for path in models.glob("*/config.pbtxt")))
        self._next_look_for_new = 0.0
        self._stopping = threading.Event()
        # Set while the server loads a new version, before which it begins with no other model.
        self.server_is_loading = False
        self.has_given_up = False  # it has ended the server

    def start(self) -> None:
        """Look, in a thread of its own, until `stop` or until the server has ended."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def adopt(self, models: Iterable[str]) -> None:
        """Watch the processes of these models too, of those that the Python backend runs; those there are count."""
        found, now = _python_models(self._models_folder, models), time.monotonic()
        for process in self._dropped:
            if process.model in found:
                found[process.model].superseded[process.pid] = now
        self._find_new(found, now)
        self._models = {**self._models, **found}

    def drop(self, models: Iterable[str]) -> None:
        """Watch these models no longer; if one is adopted again, the processes that it has now do not count."""
        dropped = set(models)
        self._models = {name: model for name, model in self._models.items() if name not in dropped}
        found = stubs_of(self._server)
        self._dropped = {each for each in found if each.model in dropped or each in self._dropped}

    def stop(self) -> None:
        """Watch no longer: from now on steps end because the server does."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_TICK) and is_alive(self._server):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look at every process once, at a monotonic time in seconds."""
        if now >= self._next_look_for_new:
            self._find_new(self._models, now)
            waits = any(model.unheard_since is not None for model in self._models.values())
            self._next_look_for_new = now + (0.0 if waits else _LOOK_FOR_NEW)
        work = self._board.work()
        for name, model in self._models.items():
            if self.server_is_loading and model.unheard_since is not None:
                model.unheard_since = now
            faults = self._faults(name, model, work)
            if faults and not model.is_faulty and now - model.seen > _SHORT_LIFE:
                model.tries, model.next_try = 0, now
            model.is_faulty = bool(faults)
            if faults and now >= model.next_try and not self._stopping.is_set():
                self._reload(name, model, faults, now)
            self._end_superseded(model, work, now)
            if model.unheard_since is not None and now - model.unheard_since > self._patience:
                self._give_up(name, now)

    def _find_new(self, models: Mapping[str, _Model], now: float) -> None:
        for process in stubs_of(self._server):
            model = models.get(process.model)
            if model is None or not process.instance:  # of a version that is not served yet, or not any more
                continue
            if process.pid in model.superseded or process == model.current.get(process.pid):
                continue
            model.replace(process, now)
            model.seen = now
            model.unheard_since = None

    def _faults(self, name: str, model: _Model, work: dict[int, Work]) -> list[str]:
        missing = model.expected - len({process.instance for process in model.current.values()})
        faults = [f"an instance of {name} has died" for _ in range(missing)]
        found = (self._fault(model, process, work) for process in model.current.values())
        return faults + [fault for fault in found if fault]

    def _fault(self, model: _Model, process: Stub, work: dict[int, Work]) -> str | None:
        if not is_alive(process.pid):
            return f"{process.instance} has died"
        is_stopped, was_stopped = process_fields(process.pid)[:1] in (["T"], ["t"]), process.pid in model.stopped
        (model.stopped.add if is_stopped else model.stopped.discard)(process.pid)
        if is_stopped and was_stopped:
            return self._kill(process, "is stopped")
        mine = work.get(process.pid)
        present = None if mine is None else mine.present
        if mine is None or present is None or present <= max(self._standstill, _STANDSTILL_TIMES * mine.longest):
            return None
        return self._kill(process, f"has stood still for {present:.0f} s")

    def _kill(self, process: Stub, reason: str) -> str:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return f"{process.instance} {reason}"

    def _reload(self, name: str, model: _Model, faults: list[str], now: float) -> None:
        model.tries += 1
        model.next_try = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (model.tries - 1))
        model.ask(now)
        self._next_look_for_new = 0.0
        self._report(f"{', '.join(faults)}: loading {name} anew")
        with suppress(FileNotFoundError):  # its version is unloaded at this moment
            reload(self._models_folder, name)

    def _end_superseded(self, model: _Model, work: dict[int, Work], now: float) -> None:
        for pid, since in list(model.superseded.items()):
            if not is_alive(pid):
                del model.superseded[pid]
            elif now - since > self._superseded and (pid not in work or work[pid].present is None):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _give_up(self, name: str, now: float) -> None:
        """End a server that does not load anything any more; who started it knows how to start another."""
        waited = now - (self._models[name].unheard_since or now)
        self._report(f"the server has not begun to load {name} anew for {waited:.0f} s: ending it")
        self._stopping.set()
        self.has_given_up = True
        with suppress(ProcessLookupError):
            os.kill(self._server, signal.SIGKILL)


def _python_models(folder: Path, names: Iterable[str]) -> dict[str, _Model]:
    """Return those of the models that the Python backend runs."""
    configs = {name: read_model_config(folder / name / "config.pbtxt") for name in names}
    return {name: _Model(_name_count(each)) for name, each in configs.items() if each.get("backend") == ["python"]}


def _name_count(config: Message) -> int:
    """Return how many names the instances of a model have: of a group's name and count, on every GPU the same."""
    counts: dict[Any, int] = {}
    for place, group in enumerate(config.get("instance_group", [])):
        name = group.get("name", [place])[0]
        counts[name] = max(counts.get(name, 0), int(group.get("count", ["1"])[0]))
    return sum(counts.values()) or 1
