"""A random encoder layer behind its attention: its weights packed as the kernel reads them, and what it computes."""

from dataclasses import dataclass

import numpy as np
import torch

WIDTH = 256
E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # in E4M3
EPSILONS = 0.01, 0.1


@dataclass(frozen=True)
class Layer:
    """Weights and biases by name, in float64; every weight is a number of the type that it is packed in."""

    half: torch.dtype
    hidden: int
    e4m3: bool
    columns: tuple[int, int] | None  # of offsets and logits, if the next layer's products follow
    tensors: dict[str, torch.Tensor]
    x_scale: float
    h_scale: float
    w1_scale: float
    w2_scale: float


def random_layer(half, hidden, e4m3, columns, seed, h_scale):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sampled = sum(columns) if columns else 0
    weights = {
        "o": normal(WIDTH, WIDTH) / 16,
        "1": normal(hidden, WIDTH) / 16,
        "2": normal(WIDTH, hidden) / hidden**0.5,
        "v": normal(WIDTH, WIDTH) / 16,
        "s": normal(sampled, WIDTH) / 16,
    }
    ffn = E4M3 if e4m3 else half
    scales = {name: weights[name].abs().max().item() / LARGEST if e4m3 else 1.0 for name in "12"}
    types = {name: ffn if name in "12" else half for name in weights}
    tensors = {f"w_{n}": (w / scales.get(n, 1.0)).float().to(types[n]).double() for n, w in weights.items()}
    for name, size in {"o": WIDTH, "1": hidden, "2": WIDTH, "v": WIDTH, "s": sampled, "n1": WIDTH, "n2": WIDTH}.items():
        tensors[f"b_{name}"] = (normal(size) / 4).float().double()
    for name in ("g1", "g2"):
        tensors[name] = (1 + normal(WIDTH) / 8).float().double()
    x_scale = 3.5 / LARGEST if e4m3 else 1.0  # a few are larger than 3.5
    return Layer(half, hidden, e4m3, columns, tensors, x_scale, h_scale if e4m3 else 1.0, scales["1"], scales["2"])


def scalars(layer):
    """Return x_factor, s1, h_factor and s2, in float32 as the kernel has them."""
    if not layer.e4m3:
        return [1.0] * 4
    factors = (
        1 / layer.x_scale,
        layer.x_scale * layer.w1_scale,
        1 / layer.h_scale,
        layer.h_scale * layer.w2_scale,
    )
    return [float(np.float32(factor)) for factor in factors]


# ---- Packing ----


def pi(n):
    return n - n % 32 + 8 * (n % 8 // 2) + 2 * (n % 32 // 8) + n % 2


def sigma(p):
    return p - p % 32 + 8 * (2 * (p % 32 // 16) + p % 4 // 2) + 2 * (p % 16 // 4) + p % 2


def tile(matrix):
    """[N, 128 bytes of numbers] -> bytes, swizzled."""
    rows = matrix.contiguous().view(torch.uint8).numpy()
    assert rows.shape[1] == 128
    n, c = np.mgrid[: len(rows), :128]
    packed = np.zeros(len(rows) * 128, np.uint8)
    packed[n * 128 + ((c // 16) ^ (n % 8)) * 16 + c % 16] = rows
    return packed


def projection(weight, half, along):
    padded = torch.zeros(-len(weight) // 128 * -128, WIDTH, dtype=half)
    padded[: len(weight)] = weight.to(half)
    n, p = torch.arange(128), torch.arange(64)
    return [
        tile(padded[pi(128 * block + n)][:, along(64 * part + p)])
        for block in range(len(padded) // 128)
        for part in range(4)
    ]


def feed_forward(w1, w2, half):
    n, p = torch.arange(128), torch.arange(64)
    tiles = []
    for chunk in range(len(w1) // 128):
        tiles += [tile(w1.to(half)[128 * chunk + n][:, 64 * part + p]) for part in range(4)]
        for part in range(2):
            tiles += [tile(w2.to(half)[pi(128 * block + n)][:, 128 * chunk + 64 * part + p]) for block in range(2)]
    return tiles


def feed_forward_e4m3(w1, w2):
    first, second = (w.float().to(E4M3).view(torch.uint8) for w in (w1, w2))
    n = p = torch.arange(128)
    tiles = []
    for chunk in range(len(w1) // 128):
        tiles += [tile(first[128 * chunk + n][:, 128 * part + p]) for part in range(2)]
        tiles += [tile(second[pi(128 * block + n)][:, 128 * chunk + sigma(p)]) for block in range(2)]
    return tiles


def packed_weights(layer):
    w = layer.tensors
    tiles = projection(w["w_o"], layer.half, along=pi)
    tiles += feed_forward_e4m3(w["w_1"], w["w_2"]) if layer.e4m3 else feed_forward(w["w_1"], w["w_2"], layer.half)
    if layer.columns:
        for name in ("w_v", "w_s"):
            tiles += projection(w[name], layer.half, along=lambda p: p)
    return torch.from_numpy(np.concatenate(tiles))


def packed_vectors(layer):
    w = layer.tensors
    parts = [w[name] for name in ("b_o", "g1", "b_n1", "b_1", "b_2", "g2", "b_n2")]
    parts.append(torch.tensor([*scalars(layer), *EPSILONS, 0, 0], dtype=torch.float64))
    if layer.columns:
        padding = torch.zeros(-len(w["b_s"]) % 128, dtype=torch.float64)
        parts += [w["b_v"], w["b_s"], padding]
    return torch.cat(parts).float()


# ---- The formulas, in float64 ----


def rounded(x, dtype):
    if dtype == E4M3:
        x = x.clamp(-LARGEST, LARGEST)
    return x.float().to(dtype).double()


def layer_norm(x, weight, bias, epsilon):
    return torch.nn.functional.layer_norm(x, (WIDTH,), weight, bias, epsilon)


def expected_tokens(layer, attended, residual):
    """-> tokens, not rounded, and the share of hidden numbers that are too large for E4M3."""
    w = layer.tensors
    x_factor, s1, h_factor, s2 = scalars(layer)
    x = layer_norm(residual + attended @ w["w_o"].T + w["b_o"], w["g1"], w["b_n1"], EPSILONS[0])
    ffn = E4M3 if layer.e4m3 else layer.half
    hidden = h_factor * (s1 * (rounded(x * x_factor, ffn) @ w["w_1"].T) + w["b_1"]).relu()
    if layer.e4m3:
        x = rounded(x, layer.half)  # as it is kept in shared memory
    y = x + s2 * (rounded(hidden, ffn) @ w["w_2"].T) + w["b_2"]
    return layer_norm(y, w["g2"], w["b_n2"], EPSILONS[1]), (hidden > LARGEST).double().mean().item()


def expected_following(layer, tokens, position):
    """-> value, offsets, logits of tokens as they were rounded."""
    w = layer.tensors
    value = tokens @ w["w_v"].T + w["b_v"]
    sampled = rounded(tokens + position, layer.half) @ w["w_s"].T + w["b_s"]
    return value, *sampled.split(layer.columns, dim=1)
