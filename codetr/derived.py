"""What a build's options make of a variant: other class names, another rule of suppression."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr.labels import read_class_names
from codetr.shown import say
from codetr.unused import refuse_unused

if TYPE_CHECKING:
    from builder.family import DetectorConfig

# Fields of `serving.rules.Suppression` that a kind does not read.
_UNUSED = {"soft": (), "hard": ("min_score",), "none": ("iou_threshold", "min_score", "class_agnostic")}


def with_classes(variant: DetectorConfig, file: Path) -> DetectorConfig:
    """Return the variant with the class names of a file, one a line; names that are there twice are noted.

    Raises:
        CodetrError: it cannot be read, or a line of it is empty.
    """
    class_names = tuple(read_class_names(file, "--classes"))
    for note in _repeated(class_names):
        say(f"note: --classes {file}: {note}", err=True)
    return variant.derive(f"{variant.name}_{file.stem}", class_names=class_names)


def _repeated(class_names: Sequence[str]) -> Iterator[str]:
    """Say which classes have one name: answers would not tell them apart, and no AP can be measured of them."""
    from builder.family import NO_CLASS

    for name, count in Counter(class_names).items():
        if count > 1 and name != NO_CLASS:
            numbers = [str(line) for line, each in enumerate(class_names, 1) if each == name]
            yield f"lines {', '.join(numbers)} are all {name!r}; answers do not tell these classes apart"


def with_suppression(variant: DetectorConfig, plugin_nodes: bool, **given: Any) -> DetectorConfig:
    """Return the variant with the rule's fields that options give; those that are None stay its own.

    Raises:
        CodetrError: one has no effect, since the rule's kind has no such field, or only plugin nodes are written.
    """
    wanted = {key: value for key, value in given.items() if value is not None}
    rule = replace(variant.rules.suppression, **wanted)
    options = {key: "nms" if key == "kind" else key for key in wanted}
    all_of_them: dict[str, Any] = dict.fromkeys(options.values(), plugin_nodes)
    refuse_unused(", since plugin nodes go into a model.onnx alone", **all_of_them)
    useless: dict[str, Any] = {option: key in _UNUSED[rule.kind] for key, option in options.items()}
    refuse_unused(
        f", since the suppression of {variant.name} is {rule.kind}",
        advice="give another --nms, or leave it out",
        **useless,
    )
    return replace(variant, rules=replace(variant.rules, suppression=rule))
