"""What the small Co-DINO is trained to do: decoder, denoising and first-stage losses, summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.co_dino.decoder import DecoderLayer, box_embedding
from builder.co_dino.model import CoDINO, Memory
from builder.co_dino.proposals import anchor_logits
from builder.parts.boxes import cxcywh_to_xyxy, inverse_sigmoid
from builder.parts.position import valid_ratios
from demo.train.matching import Targets, hungarian, iou_and_giou, task_aligned

# Weights of the losses (RT-DETR, arXiv 2304.08069, appendix A).
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0
# Matchability-aware classification loss (DEIM, arXiv 2412.04234): exponent of the IoU target and of the negatives.
MATCHABILITY_GAMMA = 1.5
# Denoising (DINO, section 3.3): copies of every object, share of wrong labels, largest corner shift in half sizes.
DENOISING_GROUPS, WRONG_LABELS, CORNER_SHIFT = 3, 0.25, 0.5


class TrainingModel(nn.Module):
    """The detector with what only training needs: the embedding of the labels that denoising queries carry."""

    def __init__(self, detector: CoDINO) -> None:
        super().__init__()
        self.detector = detector
        self.label_embedding = nn.Embedding(detector.variant.num_classes, detector.variant.embed_dim)

    def forward(self, pixels: Tensor, image_sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the losses of a batch by name, each a scalar; their sum is what to minimise.

        Args:
            pixels: float32 [B, 3, H, W], normalised, zero in the padding.
            image_sizes: int [B, 2], valid (h, w) in pixels.
            targets: the objects.
        """
        detector = self.detector
        memory = detector.encode(pixels, image_sizes)
        logits, boxes, centres = propose(detector, memory)
        assigned, quality = task_aligned(logits, boxes, centres, targets)
        losses = _named("first_stage", detection_losses(logits, boxes, assigned, targets, quality=quality))

        queries, references = _best_proposals(detector, logits, boxes)
        noisy, noisy_references, noisy_assigned, counted = self._denoising_queries(targets)
        layer_logits, layer_boxes = decode(
            detector,
            memory,
            torch.cat([queries, noisy], dim=1),
            torch.cat([references, noisy_references], dim=1),
            [queries.shape[1]] + [2 * targets.labels.shape[1]] * DENOISING_GROUPS,
        )
        cut = [queries.shape[1], noisy.shape[1]]
        (logits, noisy_logits), (boxes, noisy_boxes) = layer_logits.split(cut, 2), layer_boxes.split(cut, 2)
        losses |= _named("decoder", detection_losses(logits, boxes, hungarian(logits, boxes, targets), targets))
        noisy_assigned, counted = (x.expand(len(logits), -1, -1) for x in (noisy_assigned, counted))
        denoising = detection_losses(noisy_logits, noisy_boxes, noisy_assigned, targets, counted, DENOISING_GROUPS)
        return losses | _named("denoising", denoising)

    def _denoising_queries(self, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return content, boxes, assigned objects and whether they count, of noisy copies of the objects.

        Each of `DENOISING_GROUPS` groups holds a slightly shifted copy of each object, which shall find it, and one
        shifted further, which shall be rejected.
        """
        B, M = targets.labels.shape
        repeats = 2 * DENOISING_GROUPS
        labels = targets.labels.repeat(1, repeats)
        wrong = torch.rand_like(labels, dtype=torch.float32) < WRONG_LABELS
        labels = torch.where(wrong, torch.randint_like(labels, self.label_embedding.num_embeddings), labels)
        far = torch.tensor([False, True], device=labels.device).repeat_interleave(M).repeat(DENOISING_GROUPS)
        boxes = torch.where(targets.present[..., None], targets.boxes, 0.5).repeat(1, repeats, 1)
        boxes = shifted(boxes, far[:, None])
        objects = torch.arange(M, device=labels.device).repeat(repeats)
        assigned = torch.where(far, -1, objects).expand(B, -1)
        return self.label_embedding(labels), boxes, assigned, targets.present.repeat(1, repeats)


def shifted(boxes: Tensor, far: Tensor) -> Tensor:
    """Move both corners of `boxes` cx cy w h [B, N, 4] by up to `CORNER_SHIFT` half sizes.

    Boxes that are `far` (bool, broadcast to [B, N, 4]) move by once to twice as much.
    """
    half = boxes[..., 2:].repeat(1, 1, 2) / 2
    signs = torch.randint_like(boxes, 2) * 2 - 1
    corners = cxcywh_to_xyxy(boxes) + (torch.rand_like(boxes) + far.float()) * signs * CORNER_SHIFT * half
    low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    return torch.cat([(low + high) / 2, (high - low).clamp(min=1e-3)], dim=-1)


def propose(detector: CoDINO, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first stage's logits [B, S, num_classes], boxes [B, S, 4] and anchor centres [B, S, 2]."""
    head = detector.proposals
    anchors, valid = anchor_logits(memory.shapes, memory.valid_shapes)
    tokens = head.norm(head.proj(memory.tokens.masked_fill(~valid.unsqueeze(-1), 0)))
    boxes = torch.sigmoid(_float32(head.box_head, tokens) + anchors)
    return head.class_head(tokens), boxes, anchors[..., :2].sigmoid()


def _best_proposals(detector: CoDINO, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the content queries [B, Q, C] and the best proposals' boxes [B, Q, 4], which get no gradient here."""
    indices = logits.detach().float().amax(-1).topk(detector.variant.num_queries, dim=1).indices
    references = boxes.detach().gather(1, indices.unsqueeze(-1).expand(-1, -1, 4))
    return detector.query_embed.weight.expand(len(logits), -1, -1), references


def decode(
    detector: CoDINO, memory: Memory, hidden: Tensor, references: Tensor, groups: list[int]
) -> tuple[Tensor, Tensor]:
    """Return logits [N, B, Q, num_classes] and boxes [N, B, Q, 4] of all N decoder layers.

    The forward pass is `Decoder.forward`'s, with every layer's prediction, with queries that see only their own one
    of `groups` (sizes that sum to Q), and with gradients cut as DINO cuts them: a layer's boxes are learned through
    its own refinement and the one before it.
    """
    decoder = detector.decoder
    ratios = valid_ratios(memory.valid_shapes, memory.shapes).repeat(1, 1, 2)
    logits, boxes = [], []
    for layer, box_head in zip(decoder.layers, decoder.box_heads, strict=True):
        assert isinstance(layer, DecoderLayer)
        level_boxes = references.detach()[:, :, None] * ratios[:, None]
        position = decoder.ref_point_head(box_embedding(level_boxes[:, :, 0], hidden.shape[-1] // 2))
        pairs = zip(hidden.split(groups, 1), position.split(groups, 1), strict=True)
        hidden = layer.norm1(hidden + torch.cat([layer.self_attn(*pair) for pair in pairs], dim=1))
        attended = layer.cross_attn(hidden + position, memory.tokens, level_boxes, memory.shapes, memory.valid_shapes)
        hidden = layer.norm2(hidden + attended)
        hidden = layer.norm3(hidden + layer.ffn(hidden))
        normed = decoder.norm(hidden)
        logits.append(detector.class_head(normed))
        boxes.append(torch.sigmoid(_float32(box_head, normed) + inverse_sigmoid(references)))
        references = torch.sigmoid(_float32(box_head, hidden) + inverse_sigmoid(references.detach()))
    return torch.stack(logits), torch.stack(boxes)


def _float32(head: nn.Module, hidden: Tensor) -> Tensor:
    """Apply a box head outside autocast: bfloat16 deltas would cost a pixel on large boxes."""
    with torch.autocast(hidden.device.type, enabled=False):
        deltas: Tensor = head(hidden.float())
    return deltas


def detection_losses(
    logits: Tensor,
    boxes: Tensor,
    assigned: Tensor,
    targets: Targets,
    counted: Tensor | None = None,
    copies: int = 1,
    quality: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the class, L1 and GIoU losses per object, summed over layers.

    Args:
        logits: [..., B, Q, num_classes].
        boxes: float32 [..., B, Q, 4], cx cy w h.
        assigned: int64 [..., B, Q], the object each prediction answers for, -1 for none.
        targets: the objects.
        counted: bool [..., B, Q], false on predictions without any loss.
        copies: how many predictions answer for each object.
        quality: float32 [..., B, Q], the score an assigned prediction should have and the weight of its box; by
            default its IoU, and 1.
    """
    positive = assigned >= 0 if counted is None else (assigned >= 0) & counted
    index = assigned.clamp(min=0)
    wanted = targets.boxes.expand(*assigned.shape[:-2], -1, -1, -1).gather(-2, index.unsqueeze(-1).expand_as(boxes))
    labels = targets.labels.expand(*assigned.shape[:-2], -1, -1).gather(-1, index)
    iou, giou = iou_and_giou(boxes, wanted)
    weight = positive.float() if quality is None else quality * positive
    total = (targets.present.sum() * copies if quality is None else weight.sum()).clamp(min=1)
    score = iou.detach().clamp(min=0) if quality is None else quality
    class_loss = _class_loss(logits, labels, score, positive)
    if counted is not None:
        class_loss = class_loss * counted
    return {
        "class": CLASS_WEIGHT * class_loss.sum() / total,
        "l1": L1_WEIGHT * ((boxes - wanted).abs().sum(-1) * weight).sum() / total,
        "giou": GIOU_WEIGHT * ((1 - giou) * weight).sum() / total,
    }


def _class_loss(logits: Tensor, labels: Tensor, score: Tensor, positive: Tensor) -> Tensor:
    """Return [..., Q]: cross entropy towards the score at the right class and towards 0, focally, elsewhere."""
    logits = logits.float()
    hit = F.one_hot(labels, logits.shape[-1]) * positive.unsqueeze(-1)
    wanted = hit * score.unsqueeze(-1) ** MATCHABILITY_GAMMA
    weight = hit + (1 - hit) * logits.detach().sigmoid() ** MATCHABILITY_GAMMA
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum(-1)


def _named(stage: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stage}/{name}": loss for name, loss in losses.items()}
