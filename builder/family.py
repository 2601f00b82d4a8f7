"""What every family of detectors has: a configuration, and five names that the builder uses it by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from serving.contract import MAX_DETECTIONS, coco_class_names
from serving.errors import CodetrError
from serving.rules import DEFAULT_RULES, Rules

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from builder.detector import Detector

# (height, width) into which mmdetection's configs usually fit images.
USUAL_SIZE = (800, 1333)
# The name of a label that no class has, as an unused category id: it matches no category.
NO_CLASS = "N/A"


class VariantError(CodetrError):
    """A variant that cannot be built; the message names the setting, its value and what is supported."""


@dataclass(frozen=True)
class DetectorConfig:
    """What the builder must know of a detector; each family adds what decides its network.

    Raises:
        VariantError: class names are no sequence of names, or their number is not `num_classes`.
    """

    family: ClassVar[str]  # its name in `builder.families`

    name: str
    num_classes: int = field(default=80, kw_only=True)
    max_detections: int = field(default=MAX_DETECTIONS, kw_only=True)  # K: candidates returned, and rows answered
    input_size: tuple[int, int] = field(default=USUAL_SIZE, kw_only=True)  # usual (height, width) in pixels
    class_names: tuple[str, ...] | None = field(default=None, kw_only=True)  # None: the checkpoint's, else COCO's of 80
    checkpoint: str | None = field(default=None, kw_only=True)
    box_ap: float | None = field(default=None, kw_only=True)  # published, in percent; COCO val2017 with 80 classes
    rules: Rules = field(default=DEFAULT_RULES, kw_only=True)

    def __post_init__(self) -> None:
        names = self.class_names
        if isinstance(names, str) or (names is not None and not all(isinstance(name, str) for name in names)):
            raise VariantError(
                f"variant {self.name!r}: class_names={names!r}; expected a sequence of names (of one: ('cat',), with a "
                "comma)"
            )
        if names is not None and len(names) != self.num_classes:
            raise VariantError(f"variant {self.name!r} has num_classes={self.num_classes} but {len(names)} class names")

    @property
    @abstractmethod
    def uses_operator(self) -> bool:
        """Whether its graph has deformable attention as our operator."""

    @property
    def summary(self) -> str:
        """The network in a word or two, for tables."""
        return self.family

    @property
    def real_classes(self) -> int:
        """The number of classes without labels that none has."""
        return self.num_classes - (self.class_names or ()).count(NO_CLASS)

    def derive(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        max_detections: int | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> Self:
        """Return this architecture with other classes, for a fine-tuned checkpoint."""
        if num_classes is None:
            num_classes = self.num_classes if class_names is None else len(class_names)
        return replace(
            self,
            name=name,
            num_classes=num_classes,
            max_detections=self.max_detections if max_detections is None else max_detections,
            class_names=class_names,
            checkpoint=None,
            box_ap=None,
        )

    def with_class_names(self) -> Self:
        """Return the configuration with names for all classes: its own, COCO's for 80, else numbers."""
        if self.class_names is not None:
            return self
        coco = coco_class_names()
        names = coco if self.num_classes == len(coco) else tuple(f"class {i}" for i in range(self.num_classes))
        return replace(self, class_names=names)


def tuples(value: Any) -> Any:
    """Return JSON's lists, at any depth, as the tuples they were."""
    if isinstance(value, Mapping):
        return {key: tuples(each) for key, each in value.items()}
    return tuple(tuples(each) for each in value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Family:
    """One family of detectors, as its folder gives it to `builder.families`."""

    name: str
    presets: Mapping[str, DetectorConfig]
    network: Callable[[Any], Detector]  # of a configuration, with random weights, in training mode
    # Checkpoint's tensors to those of this network, without what inference does not use.
    renamed: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    class_count: Callable[[Mapping[str, Tensor]], int | None]  # of renamed tensors
    # The checkpoint's tensors, the renamed ones and the configuration to why they most likely do not fit, or None.
    likely_cause: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Any], str | None]
    recognises: Callable[[Mapping[str, Any]], bool]  # whether a training program's config describes this family
    read_config: Callable[[Mapping[str, Any], str], DetectorConfig]  # such a config, and a name
    # A configuration, height and width in pixels, whether TensorRT builds it: raises VariantError for what cannot be.
    check_size: Callable[[Any, int, int, bool], None]
    restore: Callable[[Mapping[str, Any]], DetectorConfig]  # what `dataclasses.asdict` and JSON made of one
    # A checkpoint's file name, its training arguments ("" and {} where it has none) and a configuration to why it is
    # of other settings, if they are some that no tensor shows; or None.
    contradiction: Callable[[str, Mapping[str, Any], Any], str | None] = lambda file_name, arguments, variant: None
    # A configuration, height and width in pixels: what to know before an engine is built so, a sentence each.
    warnings: Callable[[Any, int, int], list[str]] = lambda variant, height, width: []
    # Patterns of module names of the parts that `builder.quantise.groups` quantises: backbone, neck, projections and
    # encoder-ffn; those that a variant lacks match nothing.
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
