"""Has a running server take over the version of an engine that its repository names, and let the former one go.

The new version is loaded beside the old one, with an ensemble of its own; an image goes through it; only then the
ensemble that clients ask gets the new version's configuration. Triton changes over between two requests, and a request
keeps the models with which it began. What goes wrong before leaves the old version as it is.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from serving.contract import DETECTOR, PLUGIN_LIBRARY, model_name
from serving.errors import CodetrError
from serving.health import ask, why_no_answer
from serving.manifest import FILES, PLAN_BACKEND, read_manifest
from serving.repository import check_repository, link_ensemble, link_model, models_of
from serving.server_log import failed_models, how_it_ended, in_words, instances
from serving.shared_memory import check_shared_memory
from serving.stubs import LoadingStubs
from serving.versions import Hold, choice_path, name_and_version, read_choice, versioned
from serving.view import add, bound_ensembles, remove, replace_config
from serving.watchdog import Watchdog

_TICK = 1.0
_LOOK = 0.2
# A request that has found the old ensemble has found its steps as well by then.
_RETIRE_SECONDS = 2.0
# For the first image through an engine on a busy machine.
_ANSWER_SECONDS = 120.0
# In which Triton sees that a step has died which it is loading; of some deaths it never does.
_NOTICED_SECONDS = 60.0


@dataclass(frozen=True)
class Note:
    """What a server says, in its private folder, of the version that its repository names.

    Attributes:
        version: that one.
        state: `loading` it, `serving` it, or `failed`: then another serves on.
        reason: why it failed.
        stamp: of the file that names it, so that nobody takes an old note for a new one.
    """

    version: int
    state: Literal["loading", "serving", "failed"]
    reason: str
    stamp: str


def read_note(folder: Path, name: str) -> Note | None:
    """Return what the server of a private folder says of an engine; None where it says nothing."""
    try:
        return Note(**json.loads((folder / f"{name}.switch").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def stamp(repository: Path, name: str) -> str:
    """Return what tells one writing of the file that names the version from another; "" without it."""
    try:
        found = choice_path(repository, name).stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns}-{found.st_ino}"


class EndedError(Exception):
    """The server was told to end while it loaded a version."""


class Switcher:
    """Brings one server to the versions that its repository names; `look` does it once.

    Args:
        repository: what it serves.
        folder: its private folder, in which `models` is what it loads.
        engines: what it has loaded, such as codetr.2.
        url: host:port of its HTTP endpoint.
        server: the process id of tritonserver.
        report: called with one line for what happens, and whether it went wrong.
        log_since: returns the lines of the server's log after so many, and how many there are.
        watchdog: of its steps.
        load_seconds: the longest that a version may take to load.
        knows_limit: whether the server's configurations have the field `serving.view.INFLIGHT`.
        gpus: how many it sees.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        engines: Sequence[str],
        url: str,
        server: int,
        report: Callable[[str, bool], object],
        log_since: Callable[[int], tuple[list[str], int]],
        watchdog: Watchdog,
        load_seconds: float,
        knows_limit: bool,
        gpus: int = 1,
    ) -> None:
        self._repository, self._folder, self._models = repository, folder, folder / "models"
        self._url, self._server, self._report, self._log_since = url, server, report, log_since
        self._watchdog, self._load_seconds = watchdog, load_seconds
        self._knows_limit, self._gpus = knows_limit, gpus
        self._serving = dict(map(name_and_version, engines))
        self._holds = {engine: Hold(repository, engine) for engine in engines}
        self._plugin = next((each for engine in engines if (each := _plugin(repository, engine))), None)
        self._stamps = dict.fromkeys(self._serving, "")  # what was written during the start is looked at first
        self._added = 0
        self._stopping = threading.Event()
        for name, version in self._serving.items():
            self._note(name, version, "serving")

    @property
    def serving(self) -> Mapping[str, int]:
        """The version that is served of each engine."""
        return dict(self._serving)

    def start(self) -> None:
        """Look, in a thread of its own, until `stop`."""
        threading.Thread(target=self._run, name="switcher", daemon=True).start()

    def stop(self) -> None:
        """Begin nothing from now on, and give up what is begun."""
        self._stopping.set()
        for hold in self._holds.values():
            hold.release()

    def _run(self) -> None:
        while not self._stopping.wait(_TICK):
            with suppress(EndedError):
                self.look()

    def look(self) -> None:
        """Take over what the repository names by now."""
        for name, serving in self.serving.items():
            now = stamp(self._repository, name)
            if now in ("", self._stamps[name]):  # a repository that has gone away changes nothing
                continue
            self._stamps[name] = now
            try:
                wanted = read_choice(self._repository, name).version
            except CodetrError as error:
                self._report(f"{error}; version {serving} of {name} goes on", True)
                continue
            if wanted == serving:
                self._note(name, wanted, "serving")
            else:
                self._take_over(name, wanted)

    def _take_over(self, name: str, wanted: int) -> None:
        engine, serving = versioned(name, wanted), self._serving[name]
        self._report(f"version {wanted} of {name} is loaded beside version {serving}", False)
        self._note(name, wanted, "loading")
        trial = f"{name}.{wanted}"
        hold, self._watchdog.server_is_loading = Hold(self._repository, engine), True
        try:
            self._check(engine)
            self._load(engine, trial)
            if fault := why_no_answer(self._url, trial, _ANSWER_SECONDS):
                raise CodetrError(fault)
            self._hand_over(name, engine)
        except EndedError:
            hold.release()
            raise
        except (CodetrError, OSError) as error:
            hold.release()
            self._remove([trial, *models_of(engine)[1:]])
            self._note(name, wanted, "failed", str(error))
            self._report(f"version {wanted} of {name} is not taken over: {error}; version {serving} goes on", True)
            return
        finally:
            self._watchdog.server_is_loading = False
        self._serving[name] = wanted
        self._watchdog.adopt(models_of(engine)[1:])
        self._note(name, wanted, "serving")
        self._report(f"version {wanted} of {name} answers from now on, version {serving} is unloaded", False)
        self._wait(_RETIRE_SECONDS)
        former = versioned(name, serving)
        self._remove([trial, *models_of(former)[1:]])
        self._holds[engine] = hold
        self._holds.pop(former).release()

    def _check(self, engine: str) -> None:
        """Check what a start checks, of this engine."""
        check_repository(self._repository, [engine])
        check_shared_memory(self._repository, models_of(engine), self._gpus)
        plugin = _plugin(self._repository, engine)
        if plugin is not None and plugin != self._plugin:
            raise CodetrError(
                f"{PLUGIN_LIBRARY} of {engine} is another build than the one that this server has loaded, or it has "
                "none; start a server anew for it"
            )

    def _load(self, engine: str, trial: str) -> None:
        """Have the server load an engine's models, its ensemble as `trial`, and wait until they are ready."""
        ensemble, *steps = models_of(engine)
        _, begun = self._log_since(0)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="staged-") as staged:
            for step in steps:
                link_model(self._repository / step, Path(staged, step))
            self._write_ensemble(ensemble, Path(staged, trial))
            self._added += 1
            for model in (*steps, trial):
                add(self._models, Path(staged, model), self._added)
        self._wait_for(f"/v2/models/{trial}/ready", [trial, *steps], begun)

    def _hand_over(self, name: str, engine: str) -> None:
        """Give the ensemble that clients ask the configuration of an engine."""
        before = (self._models / name / "config.pbtxt").read_text(encoding="utf-8")
        version = name_and_version(engine)[1]
        _, begun = self._log_since(0)
        (self._models / name / str(version)).mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="staged-") as staged:
            self._write_ensemble(engine, Path(staged, name))
            replace_config(self._models, name, Path(staged, name, "config.pbtxt").read_text(encoding="utf-8"))
        try:
            self._wait_for(f"/v2/models/{name}/versions/{version}/ready", [name], begun)
        except CodetrError:
            replace_config(self._models, name, before)
            raise

    def _write_ensemble(self, engine: str, folder: Path) -> None:
        """Write the folder of an engine's ensemble, whose name the folder's becomes."""
        link_ensemble(self._repository, engine, folder)
        bound_ensembles(folder.parent, [folder.name], self._knows_limit)

    def _wait_for(self, path: str, models: Sequence[str], begun: int) -> None:
        """Wait until the server answers a path well; raises CodetrError where one of these models fails."""
        until = time.monotonic() + self._load_seconds
        stubs, death = LoadingStubs(self._server), ""
        while not self._answers(path):
            lines, _ = self._log_since(begun)
            statuses = stubs.statuses(instances(lines))
            failures = {model: why for model, why in failed_models(lines, statuses).items() if model in models}
            if failures:
                raise CodetrError(death or in_words(failures))
            if not death and (died := stubs.died(instances(lines))) and died[0] in models:
                death = f"{died[0]} {how_it_ended(died[1])}, while it was loaded"
                until = min(until, time.monotonic() + _NOTICED_SECONDS)
            if time.monotonic() > until:
                hangs = f"{death}; this server loads nothing more, restart it when that suits"
                raise CodetrError(hangs if death else f"{models[0]} was not ready within {self._load_seconds:g} s")
            self._wait(_LOOK)

    def _answers(self, path: str) -> bool:
        try:
            return ask(self._url, path, 5.0)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def _remove(self, models: Sequence[str]) -> None:
        self._watchdog.drop(models)
        for model in models:
            if (self._models / model).is_dir():
                remove(self._models, model, Path(tempfile.mkdtemp(dir=self._folder, prefix="retired-")))

    def _note(self, name: str, version: int, state: Literal["loading", "serving", "failed"], reason: str = "") -> None:
        fresh = self._folder / f".{name}.switch"
        with suppress(OSError):  # a full disk, or the server's folder has gone with it
            fresh.write_text(json.dumps(asdict(Note(version, state, reason, self._stamps[name]))), encoding="utf-8")
            fresh.replace(self._folder / f"{name}.switch")

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise EndedError


def _plugin(repository: Path, engine: str) -> str | None:
    """Return the SHA-256 of the plugin that Triton's own backend must have loaded for an engine, if it needs one."""
    with suppress(CodetrError):
        manifest = read_manifest(repository, engine)
        if manifest.get(PLAN_BACKEND) != "python":
            digest: str | None = manifest[FILES].get(f"{model_name(DETECTOR, engine)}/1/{PLUGIN_LIBRARY}")
            return digest
    return None
