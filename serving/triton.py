"""The glue between Triton's Python backend and the plain functions: settings, requests, responses.

Nothing here imports `triton_python_backend_utils`, which exists only inside the server: each `model.py` passes it in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from codetr_client.containers import image_format
from serving import metrics
from serving.admission import Account, Door, at_work, too_late
from serving.checks import check_inputs, parameters_of
from serving.contract import DETECTOR, PREPROCESS, contract
from serving.decode import claimed_size
from serving.errors import CodetrError, InvalidImageError, ServerBusyError
from serving.metrics import Recorder, unrecorded
from serving.parameters import read_parameters
from serving.postprocess import Postprocessed, PostprocessSettings, postprocess
from serving.preprocess import Preprocessed, PreprocessSettings, preprocess
from serving.refusals import DECODED, ImageRefusedError, explain
from serving.telemetry import Telemetry

if TYPE_CHECKING:
    from serving.gpu_decode import GpuPreprocessor

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Engine = Callable[..., Sequence[Array]]  # of the inputs that it has, to boxes, scores and labels
Buffers = Callable[[int], Sequence[Array]]  # of a number of images, to where the engine reads its inputs
Settings = TypeVar("Settings")

_BOOLEANS = {"true": True, "false": False}
_CONTRACT = contract(1, 1)  # for the names of tensors, which are those of every size
_CANDIDATES = [tensor.name for tensor in _CONTRACT[DETECTOR].outputs]


def parse_settings(kind: type[Settings], model_config: Mapping[str, Any]) -> Settings:
    """Read a settings dataclass from the `parameters` of a model's config.

    Keys are the dataclass's fields, values their text: numbers, `true`/`false`, one of a `Literal`'s words, or a
    comma-separated list for a tuple. Keys in capitals are the Python backend's own (`EXECUTION_ENV_PATH`).

    Args:
        kind: the dataclass; it validates ranges itself.
        model_config: the config as JSON, as `initialize` receives it.

    Raises:
        CodetrError: an unknown key or an impossible value; names the model, the key, the value and what is expected.
    """
    given = {key: entry["string_value"] for key, entry in model_config.get("parameters", {}).items()}
    given = {key: text for key, text in given.items() if not key.isupper()}
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a TypeVar cannot ask for a dataclass
    unknown = sorted(set(given) - set(known))
    try:
        if unknown:
            raise CodetrError(f"unknown parameter {unknown[0]!r}; expected some of {', '.join(known)}")
        return kind(**{key: _parse(key, text, hints[key]) for key, text in given.items()})
    except CodetrError as error:
        raise CodetrError(f"{model_config.get('name', 'config.pbtxt')}: {error}") from None


def _parse(key: str, text: str, hint: Any) -> Any:
    if hint is str or get_origin(hint) is Literal:
        return text
    if get_origin(hint) is tuple:
        return tuple(get_args(hint)[0](item.strip()) for item in text.split(","))
    if hint is bool:
        if text not in _BOOLEANS:
            raise CodetrError(f"{key}: expected true or false, got {text!r}")
        return _BOOLEANS[text]
    try:
        return hint(text)
    except ValueError:
        expected = "a whole number" if hint is int else "a number"
        raise CodetrError(f"{key}: expected {expected}, got {text!r}") from None


@dataclass(frozen=True)
class OnnxSettings:
    """How ONNX Runtime runs the detector."""

    threads: int = 0  # of one inference; 0: the machine's cores, shared by the instances

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise CodetrError(f"threads: expected 0 (all cores) or more, got {self.threads}")


@dataclass(frozen=True)
class TorchSettings:
    """How PyTorch runs the detector."""

    device: Literal["cuda", "cpu"] = "cpu"  # that the package was compiled for; `codetr build` sets it
    cuda_graphs: bool = True  # on a GPU, for every batch size

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise CodetrError(f"device: expected cuda or cpu, got {self.device!r}")


@dataclass(frozen=True)
class PlanSettings:
    """How the Python backend runs a TensorRT plan."""

    cuda_graphs: bool = True  # for every batch size


def threads_of_instance(model_config: Mapping[str, Any], threads: int = 0) -> int:
    """Return how many threads an instance of a model computes with: `threads`, or its share of the cores.

    It is 0, for the library's own number, where one instance has them all.
    """
    instances = sum(int(group.get("count", 1)) for group in model_config.get("instance_group", []))
    if threads or instances <= 1:
        return threads
    return max(1, len(os.sched_getaffinity(0)) // instances)


def output_dims(model_config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return the dims of a model's output by name, without the batch dimension."""
    for output in model_config["output"]:
        if output["name"] == name:
            return tuple(int(dim) for dim in output["dims"])
    raise CodetrError(f"{model_config['name']}: expected an output {name!r} in config.pbtxt")


class Preprocess:
    """The `codetr_preprocess` step: encoded images in, the engine's inputs out.

    Args:
        model_config: the config as JSON, as `initialize` receives it.
        record: takes what it counts.
        gpu: the number of the one that decodes, if the parameter `jpeg_decoder` asks for one.

    Raises:
        CodetrError: from the constructor, a parameter is unknown or impossible, or a GPU cannot decode here.
    """

    def __init__(self, model_config: Mapping[str, Any], record: Recorder = unrecorded, gpu: int = 0) -> None:
        self.record = record
        self.height, self.width, _ = output_dims(model_config, "images")
        self.settings = parse_settings(PreprocessSettings, model_config)
        name = str(model_config.get("name", PREPROCESS))
        self.door = Door(name, self.settings.max_waiting_images, self.settings.max_waiting_seconds)
        self._on_gpu: GpuPreprocessor | None = None
        if self.settings.jpeg_decoder == "gpu":
            from serving.gpu_decode import GpuPreprocessor  # PyTorch

            self._on_gpu = GpuPreprocessor(self.height, self.width, self.settings, self.settings.pixels, gpu)
        # OpenCV and Pillow let other threads run while they work
        self._side_by_side = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode").map

    def __call__(self, inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
        """Answer one request: `image` bytes `[B, 1]` to `images`, `image_sizes` and `original_sizes`, `[B, ...]`.

        Raises:
            CodetrError: as `read_parameters`: what the ensemble's last step would refuse costs no inference.
            InvalidImageError: an image cannot be used; of several, the first such, named by its index.
            ServerBusyError: the detector could not answer in time.
        """
        read_parameters(parameters, self.settings.unknown_parameters)
        images = inputs["image"].reshape(-1)
        if not len(images):
            raise InvalidImageError("the request holds no image")
        # One image needs no place among others, and no copy if it has the engine's size.
        is_alone = len(images) == 1 and self._on_gpu is None
        canvases = None if is_alone else np.empty((len(images), self.height, self.width, 3), np.uint8)
        with self.door.let_in(len(images), parameters):
            rows = self._rows(images, canvases)
        return {
            "images": rows[0].images[None] if canvases is None else canvases,
            "image_sizes": np.array([row.image_size for row in rows], np.int32),
            "original_sizes": np.array([row.original_size for row in rows], np.int32),
        }

    def _rows(self, images: Array, canvases: Array | None) -> list[Preprocessed]:
        """Fill the canvases, if any, with the images, and count those in order up to the first that is refused."""
        results = (self._side_by_side if self._may_be_side_by_side(images) else map)(
            self._one, images, [None] * len(images) if canvases is None else canvases
        )
        rows = []
        for index, data in enumerate(images):
            try:
                row, stages = next(results)
            except InvalidImageError as error:
                refusal = explain(data, self.settings)
                self.record(metrics.IMAGES, 1, refusal.format, refusal.cause)
                message = str(error) if len(images) == 1 else f"image {index} of {len(images)}: {error}"
                raise ImageRefusedError(message, refusal) from error
            for stage, seconds in stages.items():
                self.record(metrics.STAGE_SECONDS, seconds, stage)
            self.record(metrics.IMAGES, 1, str(image_format(data)), DECODED)
            self.record(metrics.IMAGE_PIXELS, row.original_size[0] * row.original_size[1])
            rows.append(row)
        return rows

    def _may_be_side_by_side(self, images: Array) -> bool:
        """Return whether there are several images that take no more memory together than one alone may."""
        if len(images) == 1:
            return False
        sizes = [claimed_size(data) for data in images]
        return sum(self.settings.max_pixels if size is None else size[0] * size[1] for size in sizes) <= (
            self.settings.max_pixels
        )

    def _one(self, data: bytes, canvas: Array | None) -> tuple[Preprocessed, dict[str, float]]:
        """Return an image's row and the seconds of its stages."""
        stages: dict[str, float] = {}
        took = stages.__setitem__
        row = None if self._on_gpu is None or canvas is None else self._on_gpu(data, canvas, took)
        if row is None:
            row = preprocess(data, self.height, self.width, self.settings, self.settings.pixels, took, canvas)
        return row, stages


def _stacked(rows: Sequence[Array]) -> Array:
    """Return the rows as one array, without a copy of a single one."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


class Postprocess:
    """The `codetr_postprocess` step: candidates in, detections in the original image's pixels out.

    A request may set `score_threshold` for itself: a request parameter reaches every step of an ensemble.

    Args:
        model_config: the config as JSON, as `initialize` receives it.
        warn: called with one line when an engine's candidates had to be dropped.
        record: takes what it counts.

    Raises:
        CodetrError: a parameter is unknown or impossible, or `max_detections` is not the number of rows of `boxes`.
    """

    def __init__(
        self, model_config: Mapping[str, Any], warn: Callable[[str], object], record: Recorder = unrecorded
    ) -> None:
        self.settings = parse_settings(PostprocessSettings, model_config)
        self.warn = warn
        self.record = record
        rows = output_dims(model_config, "boxes")[0]
        if self.settings.max_detections != rows:
            raise CodetrError(
                f"{model_config['name']}: max_detections: expected {rows}, the rows of the output boxes, "
                f"got {self.settings.max_detections}"
            )

    def __call__(self, inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
        """Answer one request: the detector's outputs and `original_sizes`, all `[B, ...]`, to the ensemble's outputs.

        Raises:
            CodetrError: as `read_parameters`.
        """
        lowest = read_parameters(parameters, self.settings.unknown_parameters)
        columns = zip(inputs["boxes"], inputs["scores"], inputs["labels"], inputs["original_sizes"], strict=True)
        rows = [self._one(*each, lowest) for each in columns]
        dropped = sum(row.num_dropped for row in rows)
        if dropped:
            self.record(metrics.DROPPED, dropped)
            self.warn(f"dropped {dropped} candidates that were NaN or infinite: the engine computes outside its range")
        return {
            "boxes": _stacked([row.boxes for row in rows]),
            "scores": _stacked([row.scores for row in rows]),
            "labels": _stacked([row.labels for row in rows]),
            "num_detections": np.array([[row.num_detections] for row in rows], np.int32),
        }

    def _one(
        self, boxes: Array, scores: Array, labels: Array, original_size: Array, lowest: float | None
    ) -> Postprocessed:
        started = perf_counter()
        height, width = original_size
        row = postprocess(boxes, scores, labels, (height, width), self.settings, lowest)
        self.record(metrics.STAGE_SECONDS, perf_counter() - started, "suppression")
        self.record(metrics.CANDIDATES, row.num_candidates)
        self.record(metrics.DETECTIONS, row.num_detections)
        return row


def respond(
    pb_utils: Any,
    model: str,
    requests: Sequence[Any],
    step: Callable[[Arrays, Mapping[str, Any]], Arrays],
    telemetry: Telemetry | None = None,
) -> list[Any]:
    """Answer each request of one `execute` call by itself: one request's failure is that request's error.

    Args:
        pb_utils: the module `triton_python_backend_utils`.
        model: the model's name in the contract, which knows its inputs.
        requests: what `execute` received.
        step: takes a request's inputs by name and its parameters, and returns its outputs by name.
        telemetry: takes what failed; without it failures are logged and not counted.

    Returns:
        One response for each request, in order: outputs; or `INVALID_ARG` with the message of a `CodetrError`, of a
        `ServerBusyError` `UNAVAILABLE`; or `INTERNAL` for anything else.
    """
    telemetry = telemetry or Telemetry(pb_utils, model)
    with at_work():
        return [_respond_to_one(pb_utils, model, request, step, telemetry) for request in requests]


def _respond_to_one(
    pb_utils: Any,
    model: str,
    request: Any,
    step: Callable[[Arrays, Mapping[str, Any]], Arrays],
    telemetry: Telemetry,
) -> Any:
    started = perf_counter()
    try:
        parameters = parameters_of(request)
        return _success(pb_utils, step(_inputs(pb_utils, model, request), parameters))
    except Exception as error:
        telemetry.failed(request.request_id(), error, perf_counter() - started)
        return _failure(pb_utils, error)


def respond_together(
    pb_utils: Any,
    requests: Sequence[Any],
    engine: Engine,
    max_batch_size: int,
    telemetry: Telemetry | None = None,
    buffers: Buffers | None = None,
) -> list[Any]:
    """Answer the detector's requests of one `execute` call with common batches.

    Args:
        pb_utils: the module `triton_python_backend_utils`.
        requests: what `execute` received.
        engine: takes `images` uint8 `[B, H, W, 3]` and, if the model has that input, `image_sizes` int32 `[B, 2]`;
            returns the outputs.
        max_batch_size: the most images the engine takes at once.
        telemetry: takes batches and what failed; without it failures are logged and nothing is counted.
        buffers: gives the memory of which the engine needs no copy; None where it reads from anywhere.

    Returns:
        One response for each request, in order: outputs; or `UNAVAILABLE` for what nobody waits for any more, which
        is not computed; or `INVALID_ARG` for inputs that no image can have, which the engine does not see. If the
        engine fails all others are `INTERNAL` errors: it does not say whose image it was.
    """
    telemetry = telemetry or Telemetry(pb_utils, DETECTOR)
    account = Account.of_this_process()
    may_be_cancelled = account.is_slow
    refusals = [too_late(request, may_be_cancelled) for request in requests]
    wanted = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
    for request, refusal in zip(requests, refusals, strict=True):
        if refusal is not None:
            telemetry.failed(request.request_id(), refusal, 0.0)
    with at_work(), account.running(len(requests), engine) as counted:
        answered = _respond_to_all(pb_utils, wanted, counted, max_batch_size, telemetry, buffers) if wanted else []
    answers = iter(answered)
    return [next(answers) if refusal is None else _failure(pb_utils, refusal) for refusal in refusals]


def _respond_to_all(
    pb_utils: Any,
    requests: Sequence[Any],
    engine: Engine,
    max_batch_size: int,
    telemetry: Telemetry,
    buffers: Buffers | None,
) -> list[Any]:
    started = perf_counter()
    given = [_detector_inputs(pb_utils, request) for request in requests]
    batches = [tuple(each.values()) for each in given if not isinstance(each, Exception)]
    try:
        counted = _counted(engine, telemetry.record)
        outputs = iter(run_in_batches(counted, batches, max_batch_size, buffers))
        answers = [each if isinstance(each, Exception) else _success(pb_utils, next(outputs)) for each in given]
    except Exception as error:
        answers = [each if isinstance(each, Exception) else error for each in given]
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(answer, Exception):
            telemetry.failed(request.request_id(), answer, perf_counter() - started)
    return [_failure(pb_utils, answer) if isinstance(answer, Exception) else answer for answer in answers]


def _detector_inputs(pb_utils: Any, request: Any) -> Arrays | Exception:
    try:
        return _inputs(pb_utils, DETECTOR, request)
    except Exception as error:
        return error


def _counted(engine: Engine, record: Recorder) -> Engine:
    """Return the engine, counting its batches and their time."""

    def run(images: Array, *image_sizes: Array) -> Sequence[Array]:
        started = perf_counter()
        outputs = engine(images, *image_sizes)
        record(metrics.STAGE_SECONDS, perf_counter() - started, "engine")
        record(metrics.BATCH_IMAGES, len(images))
        return outputs

    return run


def run_in_batches(
    engine: Engine, batches: Sequence[tuple[Array, ...]], max_batch_size: int, buffers: Buffers | None = None
) -> list[Arrays]:
    """Run batches of any size as few batches of at most `max_batch_size`, and hand each its own outputs.

    A batch that is whole is not copied, or if the engine has buffers, once.
    """
    if len(batches) == 1 and 0 < len(batches[0][0]) <= max_batch_size:
        return [dict(zip(_CANDIDATES, engine(*_in_place(batches[0], buffers)), strict=True))]
    inputs = [_Rows(column) for column in zip(*batches, strict=True)]
    outputs: list[Sequence[Array]] = []
    for start in range(0, len(inputs[0]) if batches else 0, max_batch_size):
        stop = min(start + max_batch_size, len(inputs[0]))
        targets = [None] * len(inputs) if buffers is None else buffers(stop - start)
        outputs.append(engine(*(rows.get(start, stop, to) for rows, to in zip(inputs, targets, strict=True))))
    columns = [_Rows(column) for column in zip(*outputs, strict=True)]
    ends = np.cumsum([len(images) for images, *_ in batches], dtype=int).tolist()
    return [
        {name: rows.get(start, stop) for name, rows in zip(_CANDIDATES, columns, strict=True)}
        for start, stop in zip([0, *ends], ends, strict=False)
    ]


def _in_place(batch: tuple[Array, ...], buffers: Buffers | None) -> Sequence[Array]:
    """Return a batch where the engine reads it."""
    if buffers is None:
        return batch
    targets = buffers(len(batch[0]))
    for target, array in zip(targets, batch, strict=True):
        np.copyto(target, array)
    return targets


class _Rows:
    """Arrays seen as one that is as long as all of them."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._ends = list(accumulate(map(len, arrays)))

    def __len__(self) -> int:
        return self._ends[-1]

    def get(self, start: int, stop: int, target: Array | None = None) -> Array:
        """Return rows: in `target` if there is one, else copied only where they are of several arrays."""
        begins = (0, *self._ends)
        parts = [
            array[max(start - begin, 0) : stop - begin]
            for array, begin, end in zip(self._arrays, begins, self._ends, strict=False)
            if begin < stop and start < end
        ]
        return parts[0] if len(parts) == 1 and target is None else np.concatenate(parts, out=target)


def _inputs(pb_utils: Any, model: str, request: Any) -> Arrays:
    names = [tensor.name for tensor in _CONTRACT[model].inputs]
    found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in names}
    # A detector may lack `image_sizes`; of the other models Triton lets no request in without all inputs.
    inputs = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
    check_inputs(model, inputs)
    return inputs


def _success(pb_utils: Any, outputs: Arrays) -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _failure(pb_utils: Any, error: Exception) -> Any:
    code, message = pb_utils.TritonError.INVALID_ARG, str(error)
    if isinstance(error, ServerBusyError):
        code = pb_utils.TritonError.UNAVAILABLE
    if not isinstance(error, CodetrError):
        # The client does not learn what the libraries write, such as paths; the log has it.
        code, message = pb_utils.TritonError.INTERNAL, f"{type(error).__name__}; the server's log says more"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
