"""Steps of a search against Algorithm 1, lines 11-14, written out."""

import pytest
import torch
from support.literal_steps import LiteralSteps
from support.search_runs import make_batch, make_model, model_config
from torch import Tensor, nn

from dasvit.search.step import BilevelStep


@pytest.mark.parametrize(
    "settings",
    [
        {"xi": 0.4},
        {"xi": 0.05, "fused": True, "token_ratio": 0.5, "alpha_betas": (0.9, 0.99)},
        {"decay_norms": False, "grad_clip": 0.5},
    ],
    ids=str,
)
@pytest.mark.usefixtures("double")
def test_steps_are_algorithm_1(settings: dict) -> None:
    """Alpha first, then the weights at the new alpha; alpha at rest in the first step. Decays are
    so large that they show within three steps."""
    config = model_config(weight_decay=1.0, alpha_weight_decay=0.5, **settings)
    model = make_model(config)
    literal, step = LiteralSteps(config, model), BilevelStep(config, model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number in range(3):
        train, val = make_batch(), make_batch() if number else None
        rate = 0.02 / (1 + number)
        literal(train, val, weight_lr=rate)
        _, _, found = step(train, val, weight_lr=rate, t=0.25 * number)
        assert model.t == 0.25 * number
        assert (found is None) == (val is None)
        assert torch.equal(model.arch["alpha"], start["arch.alpha"]) == (val is None)
    expected = dict(literal.model.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-6, atol=1e-9, msg=name)
        assert not torch.equal(p, start[name]), name


def test_all_passes_of_a_step_draw_the_same_masks() -> None:
    """Both of alpha's gradients, the two of the finite difference, and the weights'."""
    config = model_config(dropout=0.5, xi=0.4)
    model = make_model(config)
    masks: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            seen = masks.setdefault(name, [])
            module.register_forward_hook(
                lambda _, args, out, seen=seen: seen.append(out.detach() != 0)
            )
    step = BilevelStep(config, model)
    for _ in range(2):
        step(make_batch(), make_batch(), weight_lr=0.01)
    assert len(masks) == 2 * 5 * 4
    for seen in masks.values():
        assert len(seen) == 2 * 5
        assert 0.2 < seen[0].float().mean() < 0.8
        for i, mask in enumerate(seen):
            assert torch.equal(mask, seen[i - i % 5])
    assert any(not torch.equal(seen[5], seen[0]) for seen in masks.values())
