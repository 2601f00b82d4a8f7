"""What a config's test pipeline does to an image: its size, its padding, its normalisation.

Source: the transforms of mmdetection 2.25 and of mmdetection 3.3 with mmcv 2. They differ: the size of `Pad` is
(height, width) in the former and (width, height) in the latter, which also declares the padding part of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from builder.co_dino.config import LSJ_PADDING_VALUE, USUAL_SIZE, VariantError
from builder.co_dino.config_release import Release
from builder.reading.settings import FREE, REQUIRED, WHOLE, Config, Rules, check, free, only, short, single
from serving.contract import PIXEL_MEAN, PIXEL_STD

_WHERE = "test pipeline: "
PREPROCESSOR: Rules = {
    "type": only("DetDataPreprocessor"),
    "mean": only(PIXEL_MEAN, default=()),
    "std": only(PIXEL_STD, default=()),
    "bgr_to_rgb": only(True, default=False),
    "rgb_to_bgr": only(False),
    "pad_value": only(0),
    "pad_size_divisor": WHOLE,
    # Of masks, of boxes, of training.
    **free("pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value", "boxtype2tensor", "non_blocking"),
    **free("batch_augments"),
}
_NORMALIZE: Rules = {
    "type": FREE,
    "mean": only(PIXEL_MEAN, default=REQUIRED),
    "std": only(PIXEL_STD, default=REQUIRED),
    "to_rgb": only(True),
}
_RESIZE: Rules = {
    "type": FREE,
    "scale": FREE,
    "img_scale": FREE,
    "keep_ratio": FREE,
    "interpolation": only("bilinear"),
    "backend": only("cv2"),
    "ratio_range": only(None),
    "scale_factor": only(None),
    **free("multiscale_mode", "clip_object_border", "bbox_clip_border", "override"),
}
_LOAD: Rules = {
    "type": FREE,
    "to_float32": only(False),
    "color_type": only("color"),
    "channel_order": only("bgr"),
    "imdecode_backend": only("cv2", None),
    **free("file_client_args", "backend_args", "ignore_empty"),
}
STEPS: dict[str, Rules] = {
    "LoadImageFromFile": _LOAD,
    "LoadImageFromWebcam": _LOAD,
    "LoadImageFromNDArray": _LOAD,
    "Resize": _RESIZE,
    "RandomFlip": {"type": FREE, "flip_ratio": only(None, 0), "prob": only(None, 0), "direction": FREE},
    "Normalize": _NORMALIZE,
    "Pad": {
        "type": FREE,
        "size": FREE,
        "size_divisor": FREE,
        "pad_val": FREE,
        "pad_to_square": only(False),
        "padding_mode": only("constant"),
    },
    "MultiScaleFlipAug": {
        "type": FREE,
        "transforms": FREE,
        "img_scale": FREE,
        "flip": only(False),
        "scale_factor": only(None),
        "flip_direction": FREE,
    },
}
_IGNORED = ("LoadAnnotations", "ImageToTensor", "DefaultFormatBundle", "Collect", "PackDetInputs")


@dataclass(frozen=True)
class Pixels:
    """What the test pipeline says; the defaults are those of a config that has none."""

    input_size: tuple[int, int] = USUAL_SIZE  # (height, width)
    masked: bool = True  # attention ignores the padding
    padding: float | None = LSJ_PADDING_VALUE  # 0..255 before normalisation, or None for zeros after it; if not masked


def test_pipeline(config: Config) -> tuple[Config, ...]:
    """Return the steps that a test runs, those within `MultiScaleFlipAug` after it; empty if the config has none."""
    places = [_dataset(config.get(f"{split}_dataloader")) for split in ("test", "val")]
    data = config.get("data")
    places += [data.get(split) for split in ("test", "val")] if isinstance(data, dict) else []
    for place in places:
        steps = _pipeline(place)
        if steps:
            return tuple(_flat(steps))
    return tuple(_flat(_list(config.get("test_pipeline") or ())))


def read_pixels(steps: tuple[Config, ...], config: Config, model: Config, release: Release, masked: bool) -> Pixels:
    """Return size and padding of the test pipeline `steps`.

    A config without a fixed padding shows its network one image without any. With an engine of a fixed size, masking
    the padding is what comes closest to that, so such a network is a masking one whatever `use_lsj` says.

    Raises:
        VariantError: the pipeline does what neither the server nor the network does.
    """
    _check_normalisation(steps, config, model, release)
    if not steps:
        return Pixels(masked=masked)
    for step in steps:
        _check_step(step)
    _check_ratio(steps, release)
    pads = [index for index, step in enumerate(steps) if step["type"] == "Pad"]
    if len(pads) > 1:
        raise VariantError(f"{_WHERE}expected one Pad at most, got {len(pads)}")
    pad = steps[pads[0]] if pads else {}
    coloured = bool(pads) and any(step["type"] == "Normalize" for step in steps[pads[0] :])
    if release == "mmdetection":  # its images are normalised after the pipeline
        coloured, masked = bool(pads), masked and pad.get("size") is None
    padding = _colour(pad.get("pad_val", 0)) if coloured else None
    if not coloured and pads and _colour(pad.get("pad_val", 0)) != 0:
        raise VariantError(f"{_WHERE}Pad after Normalize has pad_val={short(pad['pad_val'])}; expected 0")
    if pad.get("size") is None:
        _check_divisor(pad, coloured or not masked)
        return Pixels(_resized(steps) or USUAL_SIZE, True)
    if masked and coloured:
        raise VariantError(
            f"{_WHERE}a padding of a colour that attention ignores is not supported; pad after Normalize"
        )
    size = _padded(pad, release)
    if not masked:
        _check_fits(size, steps, model)
    return Pixels((_resized(steps) or USUAL_SIZE) if masked else size, masked, padding)


def _check_normalisation(steps: tuple[Config, ...], config: Config, model: Config, release: Release) -> None:
    preprocessor = model.get("data_preprocessor")
    if preprocessor is not None:
        check(preprocessor, PREPROCESSOR, "data_preprocessor.")
    if release == "original" and steps and not any(step["type"] == "Normalize" for step in steps):
        raise VariantError(f"{_WHERE}expected a Normalize with mean={PIXEL_MEAN}, std={PIXEL_STD}, to_rgb=True")
    if release == "original" and not steps and "img_norm_cfg" in config:
        check(config["img_norm_cfg"], _NORMALIZE, "img_norm_cfg.")


def _check_step(step: Config) -> None:
    kind = step["type"]
    if kind in _IGNORED:
        return
    if kind not in STEPS:
        raise VariantError(f"{_WHERE}the step {kind} is not supported; expected {', '.join(STEPS)}")
    check(step, STEPS[kind], f"{_WHERE}{kind}.")


def _check_ratio(steps: tuple[Config, ...], release: Release) -> None:
    """Images keep their ratio: the default of mmdetection 2, but not of 3."""
    for step in steps:
        if step["type"] == "Resize" and not step.get("keep_ratio", release == "original"):
            raise VariantError(f"{_WHERE}Resize.keep_ratio=False is not supported; expected True")


def _check_divisor(pad: Config, unmasked: bool) -> None:
    if unmasked and (pad.get("size_divisor") or 1) != 1:
        raise VariantError(
            f"{_WHERE}Pad.size_divisor={pad['size_divisor']} shows the network a padding that depends on the image, "
            "which is not supported; remove that Pad, or give it the fixed size of the training"
        )


def _check_fits(size: tuple[int, int], steps: tuple[Config, ...], model: Config) -> None:
    """The server fits images into the padded size, so the config has to do so too."""
    resized = _resized(steps)
    if resized is not None and resized != tuple(sorted(size)):
        raise VariantError(
            f"{_WHERE}images are resized to {resized} but padded to {size}, (height, width); expected the same size"
        )
    divisor = (model.get("data_preprocessor") or {}).get("pad_size_divisor", 1)
    if size[0] % divisor or size[1] % divisor:
        raise VariantError(f"data_preprocessor.pad_size_divisor={divisor} enlarges Pad.size={size}; expected a divisor")


def _resized(steps: tuple[Config, ...]) -> tuple[int, int] | None:
    """Return the (shorter, longer) side that images are fitted into: a landscape's (height, width)."""
    scales = [step.get("scale", step.get("img_scale")) for step in steps]
    scales = [scale for scale in scales if scale is not None]
    if not scales:
        return None
    scale = single(scales[0] if len(scales) == 1 else tuple(scales))
    return _pair((scale, scale) if isinstance(scale, int) else scale, "Resize")


def _pair(value: Any, what: str) -> tuple[int, int]:
    whole = isinstance(value, tuple) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    if not whole:
        raise VariantError(f"{_WHERE}{what} has the size {short(value)}; expected one pair of whole numbers")
    low, high = sorted(value)
    return low, high


def _padded(pad: Config, release: Release) -> tuple[int, int]:
    """Return the (height, width) of a Pad."""
    size = pad["size"]
    _pair(size, "Pad")
    return (size[0], size[1]) if release == "original" else (size[1], size[0])


def _colour(value: Any) -> float:
    """Return the grey that a Pad fills with."""
    if isinstance(value, dict):
        check(value, free("img", "masks", "seg"), f"{_WHERE}Pad.pad_val.")
        value = value.get("img", 0)
    values = value if isinstance(value, tuple) and value else (value,)
    grey = all(type(each) in (int, float) and 0 <= each <= 255 and each == values[0] for each in values)
    if not grey:
        raise VariantError(f"{_WHERE}Pad.pad_val={short(value)} is not supported; expected one grey of 0..255")
    return float(values[0])


def _dataset(dataloader: Any) -> Any:
    return dataloader.get("dataset") if isinstance(dataloader, dict) else None


def _pipeline(dataset: Any) -> tuple[Config, ...]:
    while isinstance(dataset, dict):
        if dataset.get("pipeline"):
            return _list(dataset["pipeline"])
        dataset = dataset.get("dataset")
    return ()


def _flat(steps: tuple[Any, ...]) -> Iterator[Config]:
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise VariantError(f"{_WHERE}expected steps with a type, got {short(step)}")
        yield step
        if step["type"] == "MultiScaleFlipAug":
            yield from _flat(_list(step.get("transforms") or ()))


def _list(steps: Any) -> tuple[Any, ...]:
    if not isinstance(steps, tuple):
        raise VariantError(f"{_WHERE}expected a list of steps, got {short(steps)}")
    return steps
