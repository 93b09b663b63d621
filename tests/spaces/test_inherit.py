"""Which layer inherits from which, and what a derived network takes over. (That functions stay the
same: tests/conformance/test_spaces.py.)"""

from collections.abc import Callable

import pytest
import torch

from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.spaces.cell.inherit import derived_network, inherit_weights
from dasvit.spaces.cell.prune import prune
from dasvit.spaces.cell.supernet import SuperNet


@pytest.mark.parametrize(
    ("old_depth", "order", "sources"),
    [
        (3, "cyclic", [0, 1, 2, 0, 1]),
        (6, "cyclic", [0, 1, 2, 3, 4]),
        (2, "stretched", [0, 0, 0, 1, 1]),
        (4, "stretched", [0, 0, 1, 2, 3]),
    ],
)
@pytest.mark.usefixtures("double")
def test_layers_inherit_by_their_number(
    old_depth: int, order: str, sources: list[int], make_supernet: Callable[..., SuperNet]
) -> None:
    old = make_supernet(num_layers=old_depth)
    scores = torch.rand(5, 6)
    names, columns = prune(scores, old.edge_ops, 3)
    assert len(set(names)) > 1  # the edges differ
    new = make_supernet(names, num_layers=5)
    inherit_weights(old, new, order=order)
    weights, tokens = torch.rand(5, 3), (torch.randn(2, 5, 8), torch.randn(2, 5, 8))
    wide = torch.zeros_like(scores).scatter(1, columns, weights)
    outputs = [cell(*tokens, wide) for cell in old.cells]
    for cell, source in zip(new.cells, sources, strict=True):
        torch.testing.assert_close(cell(*tokens, weights), outputs[source])


def test_a_derived_network_copies_and_leaves_the_supernet_alone(
    make_supernet: Callable[..., SuperNet],
) -> None:
    model = make_supernet(token_ratio=0.5).eval()
    genotype = derive(torch.rand(5, 6), model.edge_ops, num_nodes=2)
    before, draws = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    network = derived_network(model, genotype)
    assert torch.equal(torch.get_rng_state(), draws)
    assert not network.training
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    other = make_supernet((("zero", "identity", "msa_h2"),) * 5)
    with pytest.raises(ValueError, match=r"\(0, 0\).*'msa_h4'"):
        derived_network(other, Genotype(((Edge(0, "msa_h4"),), (Edge(0, "identity"),))))
