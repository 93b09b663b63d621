"""Every registered method through one suite. A new one is covered by its registration; one that
has a penalty adds its literal formula to `LITERAL`."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import support.plugin_method  # noqa: F401  registers decided and shaken
import torch
from support import reference
from support.hypergradient import hypergradient, second_order
from support.runs import CrashError, crash_after_saving, search_config
from support.search_runs import (
    SIX,
    assert_same_run,
    make_batch,
    make_model,
    make_quick,
    model_config,
)
from support.tape import Tape
from torch import Tensor
from torch.testing import assert_close

from dasvit.data.batch import Batch
from dasvit.methods import DARTS, PCDARTS, RSWS, DASViT, get_method, method_names
from dasvit.methods.base import Choice, LogUniform, Uniform
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.architect import arch_gradient
from dasvit.search.checks import check_supernet
from dasvit.search.config import SearchConfig
from dasvit.search.loop import load_search_config, search
from dasvit.search.memory import SURCHARGE, plan_stage
from dasvit.search.model import SearchModel
from dasvit.spaces.cell.candidates import Candidates

CANDIDATES = Candidates(edge_ops=(SIX,) * 5, operations=SIX)
STAGED = DASViT(stage_layers=(2, 3, 4), stage_ops=(6, 4, 2), stage_epochs=5, alpha_lr=0.01, xi=0.1)
WEIGHT_LR = 0.004
XI = 0.4
FAIRNESS = ("skip_weight", "type_weight", "gamma_min", "gamma_max", "zeta1", "zeta2", "type_scope")
LITERAL: dict[str, Callable[[Any, dict[str, Tensor], Tensor, float], Tensor]] = {
    "dasvit": lambda method, arch, weights, t: reference.fairness(
        weights,
        CANDIDATES.edge_ops,
        ("msa", "mlp"),
        **{name: getattr(method, name) for name in FAIRNESS},
    ),
    "betadarts": lambda method, arch, weights, t: reference.beta_penalty(
        arch["alpha"], t, weight=method.beta_weight
    ),
    "fairdarts": lambda method, arch, weights, t: reference.undecided_penalty(
        arch["alpha"], weight=method.decision_weight
    ),
    "drnas": lambda method, arch, weights, t: reference.dirichlet_penalty(
        arch["alpha"], weight=method.kl_weight
    ),
    "decided": lambda method, arch, weights, t: sum(
        t * method.decision * (1 - (row * row).sum()) / len(weights) for row in weights
    ),
}

pytestmark = pytest.mark.parametrize("kind", [*map(get_method, method_names())], ids=method_names())


def _arch(method: DARTS, scale: float = 1.0) -> dict[str, Tensor]:
    """Architecture parameters anywhere."""
    found = method.parameters(CANDIDATES)
    return {name: (scale * torch.randn_like(p)).requires_grad_() for name, p in found.items()}


def _narrow(method: DARTS) -> DARTS:
    """With parts of 8 channels that 2 and 4 heads divide."""
    return replace(method, channel_parts=2) if isinstance(method, PCDARTS) else method


def _learns(kind: type[DARTS]) -> bool:
    """Whether alpha is trained."""
    return kind is not RSWS


def _draws(method: DARTS, **options: Any) -> Iterator[dict[str, Any]]:
    """Both corners of the outer space, and points between them."""
    space = method.outer_space(weight_lr=WEIGHT_LR, **options)
    space = {name: space[name] for name in space if name not in options.get("fixed", ())}
    for share in (torch.zeros(len(space)), torch.ones(len(space)), *torch.rand(20, len(space))):
        places = zip(space.items(), share.tolist(), strict=True)
        yield {name: _at(domain, x) for (name, domain), x in places}


def _at(domain: Uniform | LogUniform | Choice, share: float) -> Any:
    if isinstance(domain, Choice):
        return domain.values[round(share * (len(domain.values) - 1))]
    if isinstance(domain, LogUniform):
        return domain.low ** (1 - share) * domain.high**share
    return domain.low + share * (domain.high - domain.low)


# --- Settings


def test_settings_come_back_from_json(kind: type[DARTS]) -> None:
    config = SearchConfig(method=kind(alpha_lr=0.02))
    stored = json.loads(json.dumps(config_to_dict(config)))
    assert stored["method"]["name"] == kind.name == config.method.name
    found = config_from_dict(SearchConfig, stored)
    assert found == config and type(found.method) is kind
    known = {f.name for f in fields(kind)}
    assert kind.title and set(kind().outer) <= known
    assert set(kind.tied) <= kind().as_draw().keys()


def test_stages_and_those_of_another_method(kind: type[DARTS]) -> None:
    """The same epochs, and what both know; a method of one stage begins as the other does."""
    method = kind.like(replace(STAGED, alpha_freeze_epochs=3))
    assert type(method) is kind and kind.like(method) is method
    assert (method.alpha_lr, method.xi, method.total_epochs) == (0.01, 0.1, 15)
    assert method.stage_layers == ((2, 3, 4) if kind.staged else (2,))
    assert DASViT.like(method).total_epochs == 15
    stages = method.stages(len(SIX))
    assert stages[0].num_ops == len(SIX)
    assert tuple(stage.num_layers for stage in stages) == method.stage_layers
    assert sum(stage.epochs for stage in stages) == 15
    frozen = [method.frozen(epoch) for epoch in range(method.stage_epochs)]
    assert all(frozen[:3]) and frozen == sorted(frozen, reverse=True)
    assert frozen[-1] == (not _learns(kind))


def test_what_a_sweep_draws(kind: type[DARTS]) -> None:
    """Every draw is a valid method, and `as_draw` its inverse; what is fixed stays."""
    method = kind.like(STAGED)
    names = method.outer_space(weight_lr=WEIGHT_LR)
    assert names.keys() <= method.as_draw().keys()
    again = method.drawn({name: method.as_draw()[name] for name in names})
    assert again.as_draw() == pytest.approx(method.as_draw())
    drawn = []
    for draw in _draws(method):
        found = method.drawn(draw)
        assert {name: found.as_draw()[name] for name in draw} == pytest.approx(draw)
        assert replace(found, **method.outer_settings()) == method  # nothing else moves
        drawn.append(found)
    for name in method.outer:
        assert len({getattr(found, name) for found in drawn}) > 1, name
        given = {name: getattr(drawn[2], name)}
        changed = replace(method.make_room(given), **given)
        for draw in _draws(changed, fixed=(name,)):
            assert getattr(changed.drawn(draw), name) == given[name]
    assert method.outer_space(weight_lr=WEIGHT_LR, fixed=method.outer).keys() <= set(method.outer)
    heavy = method.heaviest(weight_lr=WEIGHT_LR)
    assert heavy.xi == (WEIGHT_LR if _learns(kind) else method.xi)
    assert heavy.route().token_ratio == 1.0
    assert method.heaviest(weight_lr=WEIGHT_LR, fixed=method.outer) == method
    assert method.lighter()[0] == method and len(set(method.lighter())) == len(method.lighter())


# --- What the supernet sees


def test_parameters_weights_and_scores(kind: type[DARTS]) -> None:
    method = kind()
    start = method.parameters(CANDIDATES)
    assert start["alpha"].std().item() == pytest.approx(method.alpha_init_std, rel=0.6)
    for arch in (start, _arch(method), _arch(method, 5.0)):
        assert {p.shape for p in arch.values()} <= {(5, 6), (5, 1)}
        for t in (torch.tensor(0.0), torch.tensor(0.5), torch.tensor(0.999)):
            noise = method.noise(arch, CANDIDATES, t)
            for weights in (
                method.weights(arch, {}, t),  # evaluation
                method.weights(arch, noise, t),
                method.train_weights(arch, noise, t),
            ):
                assert weights.shape == (5, 6) and weights.isfinite().all()
        scores = method.scores(arch)
        assert scores.dtype == torch.float64 and not scores.requires_grad
        assert scores.shape == (5, 6) and scores.isfinite().all()


def test_one_alpha_far_above_the_others_is_one_operation(kind: type[DARTS]) -> None:
    arch = {name: torch.zeros_like(p) for name, p in kind().parameters(CANDIDATES).items()}
    one_hot = torch.eye(6)[[1, 3, 0, 5, 2]]
    arch["alpha"] = 100 * (2 * one_hot - 1)
    weights = kind().weights(arch, {}, torch.tensor(0.9))
    assert_close(weights, one_hot, rtol=0, atol=1e-6)
    assert torch.equal(kind().scores(arch).argmax(dim=1), one_hot.argmax(dim=1))


@pytest.mark.usefixtures("double")
def test_the_penalty_is_its_formula(kind: type[DARTS], assert_same_gradients: Callable) -> None:
    """Values and gradients, under the settings of many draws."""
    t = torch.tensor(0.6)
    for draw in _draws(kind.like(STAGED)):
        method = kind.like(STAGED).drawn(draw)
        arch = _arch(method)
        weights = method.weights(arch, {}, t)
        penalty = method.penalty(arch, weights, CANDIDATES, t)
        assert (penalty is not None) == (kind.name in LITERAL), "its formula belongs into LITERAL"
        if penalty is not None:
            literal = LITERAL[kind.name](method, arch, weights, 0.6)
            assert_same_gradients(penalty, literal, list(arch.values()))


def test_hooks_can_be_captured(kind: type[DARTS]) -> None:
    """With noise given they draw nothing and wait for nothing, as `cuda_graph` asks."""
    method, t = kind(), torch.tensor(0.5)
    arch = _arch(method)
    noise = method.noise(arch, CANDIDATES, t)
    method.penalty(arch, method.weights(arch, noise, t), CANDIDATES, t)  # makes its masks
    with Tape() as tape:
        method.train_weights(arch, noise, t)
        method.penalty(arch, method.weights(arch, noise, t), CANDIDATES, t)
    assert bool(tape.calls) == _learns(kind)


def test_what_the_next_stage_goes_on_with(kind: type[DARTS]) -> None:
    kept = torch.tensor([[0, 2], [1, 5], [3, 4], [0, 1], [4, 5]])
    method = kind(inherit_alpha="carry")
    arch = _arch(method)
    carried = method.carried(arch, kept)
    assert carried.keys() == arch.keys()
    for name, value in carried.items():
        pairs = zip(arch[name], kept, strict=True)
        rows = [row if len(row) == 1 else row[columns] for row, columns in pairs]
        assert torch.equal(value, torch.stack(rows)) and not value.requires_grad
    assert replace(method, inherit_alpha="reset").carried(arch, kept) == {}


# --- In the step


def _model(kind: type[DARTS], **settings: Any) -> tuple[SearchModel, tuple[Batch, Batch]]:
    """Of a method, half way through its search, with a training and a validation batch."""
    config = model_config(**settings)
    method = replace(_narrow(kind.like(config.method)), alpha_init_std=1.0)
    model = make_model(config.replaced(method=method))
    model.t.fill_(0.5)
    return model, (make_batch(), make_batch())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("fused", [False, True])
def test_second_order_is_the_exact_hypergradient(fused: bool, kind: type[DARTS]) -> None:
    """By double backward, under noise; every architecture parameter has a gradient."""
    if not _learns(kind):
        pytest.skip("alpha is not trained")
    model, batches = _model(kind, fused=fused)
    noise = model.noise()
    first = hypergradient(model, *batches, 0.0, noise)
    assert_close(arch_gradient(model, *batches, noise=noise, xi=0.0).gradients, first)
    exact = hypergradient(model, *batches, XI, noise)
    found = arch_gradient(model, *batches, noise=noise, xi=XI)
    for gradient, wanted, cheap in zip(found.gradients, exact, first, strict=True):
        assert cheap.abs().max() > 1e-3 and (wanted - cheap).norm() > 1e-3
        assert (gradient - wanted).norm() < 2e-3 * (wanted - cheap).norm()


@pytest.mark.usefixtures("double")
def test_second_order_with_selected_tokens(kind: type[DARTS]) -> None:
    """DARTS' formula term by term: where tokens are selected by a straight-through gate, no double
    backward is exact."""
    if not _learns(kind):
        pytest.skip("alpha is not trained")
    model, batches = _model(kind, token_ratio=0.5)
    noise = model.noise()
    direct, product = second_order(model, *batches, XI, noise)
    wanted = [d - XI * p for d, p in zip(direct, product, strict=True)]
    found = arch_gradient(model, *batches, noise=noise, xi=XI)
    assert_close(found.gradients, wanted, rtol=1e-7, atol=1e-10)


def test_a_search_is_checked_and_its_memory_planned(kind: type[DARTS]) -> None:
    """Of the preset's size, as commands do before they start. Compiled, all candidates count."""
    config = SearchConfig()
    config = config.replaced(method=kind.like(config.method), fused=False)
    check_supernet(config)
    plan = plan_stage(config, 0)
    assert plan.peak > plan.resident > 0
    if config.method.route().sparse:
        check_supernet(config.replaced(compile=True))
        assert plan_stage(config.replaced(compile=True), 0).peak > 1.5 * SURCHARGE * plan.peak


# --- In a search


def test_a_killed_search_ends_as_if_it_had_not_been(
    kind: type[DARTS], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a genotype of the space that says which method found it; in second order."""
    make_quick(monkeypatch)
    config = search_config(operations=SIX, stage_layers=(1, 2), stage_ops=(6, 3), dim=8, xi=0.05)
    method = _narrow(kind.like(config.method))
    config = config.replaced(method=method, plugins=("support.plugin_method",))
    found = search(config, tmp_path / "whole")
    assert set(found.genotype.operations) <= set(SIX) - {"zero"}
    assert found.genotype.provenance["settings"]["method"]["name"] == kind.name
    assert found.settings == config.outer_settings
    with monkeypatch.context() as patch:
        crash_after_saving(patch, epoch=1)
        with pytest.raises(CrashError):
            search(config, tmp_path / "killed")
    search(config, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert load_search_config(tmp_path / "killed") == config
