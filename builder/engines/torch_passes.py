"""What the torch engine asks of Inductor beyond its own: activations computed where a product is."""

from __future__ import annotations

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default)


class ReLUInProduct(CustomGraphPass):
    """Turn a product with bias and a ReLU into the one call of cuBLASLt that does both.

    Inductor leaves ReLU as a kernel of its own, which reads and writes all that the product has written. The result is
    the same: rounding and ReLU may change places.
    """

    def __call__(self, graph: Graph) -> None:
        """Rewrite `graph`, lowered to products of matrices, in place."""
        for node in graph.find_nodes(op="call_function", target=aten.relu.default):
            product = _product(node)
            if product is not None:
                product.target = aten._addmm_activation.default
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)

    def uuid(self) -> object:
        """Tell programs apart that were compiled by other versions of this file."""
        return get_hash_for_files((__file__,))


def _product(relu: Node) -> Node | None:
    """Return the product whose result, perhaps in another shape, goes into `relu` and nowhere else."""
    node = relu.args[0]
    while isinstance(node, Node) and node.target in VIEWS and len(node.users) == 1:
        node = node.args[0]
    if not isinstance(node, Node) or node.target is not aten.addmm.default or len(node.users) != 1:
        return None
    bias, plain = node.args[0], not node.kwargs
    return node if plain and isinstance(bias, Node) and bias.meta["val"].dim() == 1 else None
