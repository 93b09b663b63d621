"""What is particular to a method, beside the conformance suite that all go through."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import CrashError, crash_after_saving, search_config
from support.search_runs import (
    SIX,
    assert_same_run,
    make_batch,
    make_model,
    make_quick,
    model_config,
)
from torch import Tensor
from torch.testing import assert_close

import dasvit.search.choose
import dasvit.search.loop
from dasvit.data.datasets import load_data
from dasvit.methods import (
    DARTS,
    GDAS,
    PCDARTS,
    PDARTS,
    RSWS,
    SDARTS,
    DARTSMinus,
    DARTSPlus,
    DrNAS,
    FairDARTS,
)
from dasvit.methods.base import Ranking
from dasvit.report.events import Choosing, SearchEpoch
from dasvit.report.record import load_search_result
from dasvit.run.seed import derive_seed
from dasvit.run.settings import SettingError
from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.checks import check_supernet
from dasvit.search.choose import by_perturbation
from dasvit.search.config import SearchConfig
from dasvit.search.loop import search
from dasvit.search.score import accuracy
from dasvit.spaces import CellSpace
from dasvit.spaces.base import Route
from dasvit.spaces.cell.candidates import Candidates
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.edges import MixedEdge
from dasvit.spaces.cell.genotype import Genotype, edge_list
from dasvit.spaces.cell.operations import MLP, MSA
from dasvit.spaces.cell.supernet import SuperNet

ROW = Candidates(edge_ops=(SIX[:4],), operations=SIX)


def counted(function: Callable, calls: list[None]) -> Callable:
    def call(*args: Any) -> Any:
        calls.append(None)
        return function(*args)

    return call


def _time(t: float) -> Tensor:
    return torch.tensor(t)


def test_the_auxiliary_skip_fades_to_plain_darts() -> None:
    config = model_config()
    model = make_model(config.replaced(method=DARTSMinus(skip_start=0.8)))
    plain = model.method.weights(model.named_arch(), {}, model.t)
    for t, linear, cosine in ((0.0, 0.8, 0.8), (0.25, 0.6, 0.4 * (1 + 0.5**0.5)), (1.0, 0, 0)):
        model.t.fill_(t)
        for method, extra in (
            (model.method, linear),
            (replace(model.method, skip_decay="cosine"), cosine),
        ):
            model.method = method
            for weights in (model.weights(), model.train_weights({})):
                added = torch.zeros(5, 6)
                added[:, SIX.index("identity")] = extra
                assert_close(weights - plain, added, atol=1e-6, rtol=0)
        model.method = replace(model.method, skip_decay="linear")
    with pytest.raises(SettingError, match="method dartsminus must keep all candidates"):
        DARTSMinus(stage_layers=(2, 4), stage_ops=(8, 5))
    with pytest.raises(SettingError, match="method dartsminus needs identity among the operations"):
        SearchConfig().replaced(method=DARTSMinus(), operations=("zero", "msa_h2", "mlp_r2"))


def test_undecided_edges_are_left_out() -> None:
    """Node 0 keeps one of two edges; node 1 has none above the threshold: its strongest stays."""
    weights = torch.tensor([[0.1, 0.9], [0.2, 0.84], [0.5, 0.3], [0.1, 0.6], [0.2, 0.4]])
    method, arch = FairDARTS(), {"alpha": weights.logit()}
    assert_close(method.weights(arch, {}, _time(0.5)), weights)
    rows = (("identity", "msa_h2"),) * 5
    found = derive(method.scores(arch), rows, num_nodes=2, least_score=method.least_score)
    assert [[edge.source for edge in edges] for edges in found.nodes] == [[0], [1]]
    figures = method.figures(arch, weights, ROW, _time(0.5))
    assert figures["sigmoid/above_threshold"] == pytest.approx(0.1)


def test_gdas_draws_by_softmax() -> None:
    method, arch = GDAS(), {"alpha": torch.tensor([[0.0, 1.0, -1.0, 0.5]]).requires_grad_()}
    draws = []
    for _ in range(4000):
        noise = method.noise(arch, ROW, _time(0.5))
        draws.append(method.weights(arch, noise, _time(0.5)).detach())
    found = torch.stack(draws)
    assert set(found.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert_close(found.mean(dim=0), method.shares(arch, _time(0.5)), atol=0.03, rtol=0)
    # The gradient is that of the drawn one's soft weight, at the temperature of the time.
    for t, tau in ((0.0, 10.0), (1.0, 0.1)):
        soft = ((arch["alpha"].log_softmax(1) + noise["gumbel"]) / tau).softmax(1)
        values = torch.tensor([1.0, 2.0, 3.0, 4.0])
        drawn = soft.argmax()
        wanted = torch.autograd.grad(soft[0, drawn] * values[drawn], arch["alpha"])
        hard = method.weights(arch, noise, _time(t))
        assert_close(torch.autograd.grad((hard * values).sum(), arch["alpha"]), wanted)


@pytest.mark.usefixtures("double")
def test_drnas_draws_and_differentiates_through_the_draw() -> None:
    """The mean of the draws is that of the distribution, and so is the gradient's."""
    method = DrNAS()
    arch = {"alpha": torch.tensor([[0.0, 1.0, -1.0, 0.5]]).repeat(20_000, 1).requires_grad_()}
    noise = method.noise(arch, ROW, _time(0.5))
    drawn, values = method.weights(arch, noise, _time(0.5)), torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean = method.weights(arch, {}, _time(0.5))
    assert_close(mean[0], torch.tensor([1.0, 2.0, 0.367879, 1.5]) / 4.867879, atol=1e-6, rtol=0)
    assert_close(drawn.mean(0), mean[0], atol=0.01, rtol=0)
    [found] = torch.autograd.grad((drawn * values).sum(), arch["alpha"])
    [wanted] = torch.autograd.grad((mean * values).sum(), arch["alpha"])
    assert_close(found.mean(0), wanted[0], atol=0.02, rtol=0)


def test_smoothing_grows_and_keeps_weights_that_sum_to_one() -> None:
    method, arch = SDARTS(epsilon=0.3), {"alpha": torch.randn(200, 6)}
    plain = arch["alpha"].softmax(dim=1)
    for t, size in ((0.0, 0.03), (0.5, 0.165), (1.0, 0.3)):
        shift = method.noise(arch, ROW, _time(t))["shift"]
        assert 0.95 * size < shift.abs().max() <= size
        weights = method.train_weights(arch, {"shift": shift}, _time(t))
        assert (weights >= 0).all() and weights.max() <= 1
        assert_close(weights.sum(1), torch.ones(200))
    moved = (plain + shift).clamp(0, 1)
    assert_close(weights, moved / moved.sum(1, keepdim=True))
    gone = method.train_weights(arch, {"shift": torch.full((200, 6), -1.0)}, _time(1.0))
    assert torch.equal(gone, plain)


def test_when_dartsplus_stops() -> None:
    one, other = (("msa_h2", "mlp_r2"),), (("mlp_r2", "msa_h2"),)
    method = DARTSPlus(stop_skips=2, stop_epochs=3)
    for history, reason in (
        ([], None),
        ([Ranking(one, 1)] * 3, None),
        ([Ranking(one, 1)] * 4, "after 3 epochs without a change of order"),
        ([Ranking(one, 1), Ranking(other, 1), *[Ranking(one, 1)] * 3], None),
        ([Ranking(one, 0), Ranking(other, 2)], "with 2 skips in the encoder"),
    ):
        assert method.stop(history) == reason
        assert DARTS().stop(history) is None


def test_a_search_that_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the third of five epochs, also where it is killed before."""
    make_quick(monkeypatch)
    monkeypatch.setattr(
        DARTSPlus, "stop", lambda self, history: "enough" if len(history) > 2 else None
    )
    config = search_config(operations=SIX, stage_layers=(1,), stage_ops=(6,), dim=8)
    config = config.replaced(method=DARTSPlus(stage_layers=(1,), stage_epochs=5))
    told: list[Any] = []
    found = search(config, tmp_path / "whole", report=told.append)
    assert [getattr(event, "epoch", None) for event in told] == [0, 1, 2, 2, None]
    assert (found.stopped, found.genotype.provenance["epoch"]) == ("enough", 3)
    with monkeypatch.context() as patch:
        crash_after_saving(patch, epoch=1)
        with pytest.raises(CrashError):
            search(config, tmp_path / "killed")
    search(config, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_dartsplus_waits_for_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs in which it stays still have no order that could stay the same."""
    make_quick(monkeypatch)
    config = search_config(operations=SIX, stage_layers=(1,), stage_ops=(6,), dim=8, alpha_lr=1e-6)
    method = DARTSPlus(stage_layers=(1,), stage_epochs=6, alpha_freeze_epochs=2, alpha_lr=1e-6)
    config = config.replaced(method=replace(method, stop_skips=5, stop_epochs=1))
    found = search(config, tmp_path)
    assert found.genotype.provenance["epoch"] == 4
    assert found.stopped == "after 1 epochs without a change of order"


def test_a_pdarts_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips are dropped while training, none is derived though all alphas ask for it, and each
    stage has fresh weights and a learning rate of its own."""
    make_quick(monkeypatch)
    config = search_config(operations=SIX, stage_layers=(1, 2), stage_ops=(6, 3), dim=8)
    method = replace(PDARTS.like(config.method), skips=0, stage_epochs=5, alpha_lr=1e-6)
    assert (method.inherit_weights, method.inherit_alpha) == ("fresh", "reset")

    def wants_skips(self: PDARTS, candidates: Candidates) -> dict[str, Tensor]:
        return {"alpha": candidates.mask("identity", torch.zeros(()))}

    monkeypatch.setattr(PDARTS, "parameters", wants_skips)
    rates: list[float] = []
    drop_skips = SuperNet.drop_skips
    monkeypatch.setattr(
        SuperNet, "drop_skips", lambda self, rate: (rates.append(rate), drop_skips(self, rate))
    )
    told: list[Any] = []
    found = search(config.replaced(method=method, lr_span="search"), tmp_path, report=told.append)
    wanted = [method.skip_drop(stage, epoch) for stage in (0, 1) for epoch in range(5)]
    assert rates == [*wanted, 0.0]  # none while the encoder is chosen
    assert max(rates) > 0.3 and "identity" not in found.genotype.operations
    rows = [event.weight_lr for event in told if isinstance(event, SearchEpoch)]
    assert rows[5] == pytest.approx(rows[0]) and rows[4] < 0.2 * rows[0]


def test_a_fairdarts_search_derives_what_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    config = search_config(operations=SIX, stage_layers=(1,), stage_ops=(6,), dim=8)
    found = search(config.replaced(method=FairDARTS.like(config.method)), tmp_path)
    assert [len(edges) for edges in found.genotype.nodes] == [1, 1]  # nothing is, so early


def test_pdarts_drops_skips_by_the_authors_schedule() -> None:
    method = PDARTS(stage_epochs=25)
    assert [method.frozen(e) for e in (0, 9, 10, 24)] == [True, True, False, False]
    for stage, epoch, rate in (
        (0, 0, 0.0),
        (1, 0, 0.4 * 24 / 25),
        (1, 9, 0.4 * 15 / 25),
        (1, 10, 0.4),
        (2, 15, 0.7 * 0.36787944),
        (5, 10, 0.7),
    ):
        assert method.skip_drop(stage, epoch) == pytest.approx(rate)
    for setting in ("compile", "cuda_graph"):
        with pytest.raises(SettingError, match="method pdarts drops skips at random"):
            SearchConfig().replaced(method=method, **{setting: True})


@pytest.mark.parametrize("fused", [False, True])
def test_skips_are_dropped_in_training_alone(fused: bool, make_supernet: Callable) -> None:
    rows = (("identity", "mlp_r2"),) * 5
    model, images = make_supernet(rows, fused=fused), torch.randn(3, 1, 8, 8)
    weights = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    whole = model(images, weights)
    model.drop_skips(0.999999)
    assert_close(model(images, weights), model.head(model.norm(torch.zeros(3, 8))))
    model.drop_skips(0.5)
    assert not torch.equal(model(images, weights), model(images, weights))
    assert torch.equal(model.eval()(images, weights), whole)


@pytest.mark.parametrize("most", range(5))
def test_the_weakest_skips_go(most: int) -> None:
    """One by one, from the whole encoder anew each time; an edge with nothing else keeps it."""
    generator = torch.Generator().manual_seed(most)
    rows = (SIX[1:],) * 5
    for _ in range(50):
        scores = torch.rand(5, 5, dtype=torch.float64, generator=generator)
        scores[:, 0] += 0.5 * torch.rand(5, dtype=torch.float64, generator=generator)
        found = derive(scores, rows, num_nodes=2, most_skips=most)
        assert found.operations.count("identity") <= most
        removed = scores.clone()  # by hand: the weakest skip of the encoder, until they are few
        while (now := derive(removed, rows, num_nodes=2)).operations.count("identity") > most:
            skips = [
                edge_list(2).index((edge.source, node))
                for node, edges in enumerate(now.nodes)
                for edge in edges
                if edge.operation == "identity"
            ]
            removed[min(skips, key=lambda e: removed[e, 0].item()), 0] = -1
        assert found == now
    alone = (("identity",), ("msa_h2",), ("identity",), ("identity",), ("identity",))
    assert (
        derive(torch.rand(5, 1), alone, num_nodes=2, most_skips=0).operations.count("identity") == 3
    )


def test_pcdarts_of_one_part_and_uniform_betas_is_darts() -> None:
    """Logits, and the gradients of the weights and of alpha."""
    config = model_config()
    plain = make_model(config.replaced(method=DARTS.like(config.method)))
    method = replace(PCDARTS.like(config.method), channel_parts=1)
    model = make_model(config.replaced(method=method))
    model.load_state_dict(plain.state_dict() | {"arch.beta": torch.full((5, 1), 0.3)})
    images, found = torch.randn(3, 1, 8, 8), []
    for one in (plain, model):
        loss = one(images).square().sum()
        params = [one.arch["alpha"], *one.weight_parameters()]
        found.append((loss, torch.autograd.grad(loss, params)))
    assert_close(found[0], found[1])


@pytest.mark.usefixtures("double")
def test_edges_into_a_node_share_their_weight() -> None:
    """Two edges into the first node, three into the second; a search keeps alphas still first."""
    method, beta = PCDARTS(stage_epochs=50), torch.tensor([[1.0], [0.0], [0.5], [-1.0], [2.0]])
    arch = {"alpha": torch.randn(5, 4), "beta": beta}
    shares = [2 * beta[:2].softmax(0), 3 * beta[2:].softmax(0)]
    assert_close(method.weights(arch, {}, _time(0.5)).sum(1, keepdim=True), torch.cat(shares))
    assert_close(method.scores(arch), arch["alpha"].softmax(1) * torch.cat(shares))
    assert [method.frozen(epoch) for epoch in (0, 14, 15, 49)] == [True, True, False, False]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("parts", [2, 4])
def test_a_part_of_the_channels_goes_through(parts: int) -> None:
    """Channel by channel: the i-th of every part side by side, the first part mixed."""
    edge = MixedEdge(("zero", "identity", "msa_h2", "mlp_r2"), 8, channel_parts=parts)
    weights, tokens, width = torch.rand(4), torch.randn(3, 5, 8), 8 // parts
    found = edge(tokens, weights)
    first = tokens[..., :width]
    mixed = weights[1] * first + weights[2] * edge.ops[2](first) + weights[3] * edge.ops[3](first)
    for i in range(width):
        for part in range(parts):
            channel = found[..., i * parts + part]
            others = weights.sum() * tokens[..., part * width + i]
            assert_close(channel, mixed[..., i] if part == 0 else others)


def test_heads_must_divide_a_part_of_the_channels() -> None:
    config = SearchConfig().replaced(method=PCDARTS(channel_parts=16))
    with pytest.raises(ValueError, match=r"msa_h2: 2 heads .* \(of 48 channels, parted by 16\)"):
        check_supernet(config)
    with pytest.raises(ValueError, match="the width dim=48 cannot be parted into 5 equal parts"):
        check_supernet(config.replaced(channel_parts=5))


def test_gdas_computes_what_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same step as with all candidates computed, as compiled and captured ones have it."""
    config = model_config()
    config = config.replaced(method=GDAS.like(config.method))
    found, called = [], []
    monkeypatch.setattr(MSA, "forward", counted(MSA.forward, called))
    monkeypatch.setattr(MLP, "forward", counted(MLP.forward, called))
    for sparse in (True, False):
        torch.manual_seed(0)
        monkeypatch.setattr(GDAS, "route", lambda self, sparse=sparse: Route(sparse=sparse))
        model, batches = make_model(config), (make_batch(), make_batch())
        noise, calls = model.noise(), len(called)
        grads = arch_gradient(model, *batches, noise=noise, xi=0.0).gradients
        weight_grads, loss, _ = weight_gradient(model, batches[0], noise)
        found.append((grads, weight_grads, loss))
        drawn = model.weights(noise).argmax(1)
        heavy = sum(SIX[i].startswith("m") for i in drawn.tolist())
        assert len(called) - calls == 2 * 2 * (heavy if sparse else 4 * 5)
    assert_close(found[0], found[1])


@pytest.mark.parametrize("edges_per_node", [1, 2])
def test_encoders_are_drawn_uniformly(edges_per_node: int) -> None:
    """Each that sees the image equally often, on the one edge or the two that a node keeps."""
    names = ("zero", "identity", "msa_h2", "mlp_r2")
    space = CellSpace(operations=names, num_nodes=1, edges_per_node=edges_per_node, dim=8)
    candidates, draws = space.candidates(), 6000
    found = Counter(
        tuple(candidates.draw(torch.zeros(())).flatten().int().tolist()) for _ in range(draws)
    )
    rows = [(0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    wanted = {
        (*one, *other)
        for one, other in itertools.product(rows, repeat=2)
        if [any(one), any(other)].count(True) == edges_per_node and (one[2] or other[2])
    }
    assert found.keys() == wanted
    assert min(found.values()) > 0.85 * draws / len(wanted)


def test_a_random_search_with_shared_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found has the best accuracy with the weights of the supernet, the proposals follow;
    alpha stays, and every step trains one encoder."""
    make_quick(monkeypatch)
    config = search_config(operations=SIX, stage_layers=(1,), stage_ops=(6,), dim=8)
    config = config.replaced(method=replace(RSWS.like(config.method), draws=40))
    kept: list[Any] = []
    choose = dasvit.search.loop.choose

    def watch(config: SearchConfig, *others: Any) -> Any:
        kept[:] = others
        return choose(config, *others)

    monkeypatch.setattr(dasvit.search.loop, "choose", watch)
    told: list[Any] = []
    found = search(config, tmp_path, report=told.append)
    model, _, _, val, _ = kept
    chosen = [found.genotype, *found.proposals]
    assert len({genotype.canonical_hash for genotype in chosen}) == 10

    def own(genotype: Genotype) -> float:
        return accuracy(config.space.network(model.supernet, genotype), val)

    accuracies = [own(genotype) for genotype in chosen]
    assert accuracies == sorted(accuracies, reverse=True)
    assert found.discretised_accuracy == accuracies[0]
    drawn = {config.space.sample(derive_seed(config.seed, "draw", n)) for n in range(40)}
    assert {g.canonical_hash for g in chosen} <= {g.canonical_hash for g in drawn}
    assert found.decided is None and math.isnan(told[0].val_loss)
    steps = [event for event in told if isinstance(event, Choosing)]
    assert steps[-1].done == steps[-1].total - 1 > 10
    assert load_search_result(tmp_path / "result.json") == found


@pytest.mark.parametrize("select_epochs", [0, 1])
def test_selection_by_perturbation(select_epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a supernet whose accuracy is made: every candidate and edge is worth a number."""
    config = model_config(select="perturbation", select_epochs=select_epochs)
    config = config.replaced(method=DARTS.like(config.method))
    model = make_model(config, num_classes=10)
    worth = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    worth[:, SIX.index("zero")] = 5.0  # never chosen
    wanted = worth[:, 1:].argmax(dim=1) + 1
    edges = worth.gather(1, wanted[:, None])[:, 0]
    asked: list[Tensor] = []

    def made(model: Any, split: Any, weights: Tensor) -> float:
        asked.append(weights.clone())
        return ((weights > 0).double() * worth).sum().item() / 100

    monkeypatch.setattr(dasvit.search.choose, "accuracy", made)
    data = load_data(config.data, torch.device("cpu")).train
    train, val = data.subset(torch.arange(36)), data.subset(torch.arange(36, 50))
    before = [p.detach().clone() for p in model.weight_parameters()]
    arch = model.arch["alpha"].detach().clone()
    told: list[Choosing] = []
    scores = by_perturbation(config, model, train, val, told.append)
    assert torch.equal(scores.argmax(dim=1), wanted)
    found = config.space.derive(scores, model.candidates.edge_ops)
    strongest = 2 + edges[2:].argsort(descending=True)[:2]
    kept = {0, 1, *strongest.tolist()}
    assert found == config.space.derive(
        torch.where(torch.nn.functional.one_hot(wanted, 6) == 1, edges[:, None], -1.0)
        + torch.tensor([[0.0 if e in kept else -9.0] for e in range(5)]),
        model.candidates.edge_ops,
    )
    # Five edges with five candidates and the whole, then the three edges into the second node.
    assert len(asked) == 5 * (1 + 5) + 3
    assert [event.done for event in told] == list(range(6)) and told[0].total == 6
    moved = any(
        not torch.equal(p, old) for p, old in zip(model.weight_parameters(), before, strict=True)
    )
    assert moved == bool(select_epochs)
    assert torch.equal(model.arch["alpha"], arch)


def test_a_search_that_selects_by_perturbation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends the same where it is killed while it chooses."""
    make_quick(monkeypatch)
    config = search_config(
        operations=SIX, stage_layers=(1, 2), stage_ops=(6, 3), dim=8, select="perturbation"
    )
    found = search(config, tmp_path / "whole")
    assert found.decided is None and found.proposals == ()

    def crash(event: Any) -> None:
        if isinstance(event, Choosing) and event.done == 3:
            raise CrashError

    with pytest.raises(CrashError):
        search(config, tmp_path / "killed", report=crash)
    search(config, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    with pytest.raises(SettingError, match="method rsws draws single operations"):
        config.replaced(method=RSWS.like(config.method))
    with pytest.raises(SettingError, match="method rsws has one stage"):
        RSWS(stage_layers=(2, 4))


@pytest.mark.parametrize("kind", [GDAS, RSWS])
@pytest.mark.parametrize("xi", [0.0, 0.4])
def test_a_step_that_draws_nothing_but_zero(kind: type[DARTS], xi: float) -> None:
    """Its gradients are 0 all over, and the search goes on."""
    config = model_config()
    model = make_model(config.replaced(method=kind.like(config.method)))
    nothing = torch.nn.functional.one_hot(torch.zeros(5, dtype=torch.long), 6).float()
    noise = {"encoder": nothing, "gumbel": 1e4 * nothing}
    found = arch_gradient(model, make_batch(), make_batch(), noise=noise, xi=xi)
    assert not any(gradient.any() for gradient in found.gradients)
