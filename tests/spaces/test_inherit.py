"""What a derived network takes over. (What a stage inherits: tests/conformance/test_spaces.py and
tests/search/test_stages.py.)"""

from collections.abc import Callable

import pytest
import torch

from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.spaces.cell.inherit import derived_network
from dasvit.spaces.cell.supernet import SuperNet


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
