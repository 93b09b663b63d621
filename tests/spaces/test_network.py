"""The derived network, its size, and its place in timm's register."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from support import reference

from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Edge, Genotype
from dasvit.spaces.cell.network import DASViT, resolve_genotype

TINY = Genotype(((Edge(0, "msa_h2"), Edge(1, "mlp_r2")), (Edge(1, "identity"), Edge(2, "msa_h4"))))
TINY_SIZE = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 3,
    "embed_dim": 8,
    "depth": 3,
}


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["dasvit_cifar10", "dasvit_imagenet100"])
def test_the_papers_encoder_has_50_4_million_parameters(name: str) -> None:
    with torch.device("meta"):
        model = DASViT(name, num_classes=10)
    width, hidden = 768, 384
    perceptron = 2 * width + width * hidden + hidden + hidden * width + width
    attention = 2 * width + 4 * (width * width + width)
    embedding = 16 * 16 * 3 * width + width + width + (196 + 1) * width
    head = 2 * width + width * 10 + 10
    assert 12 * (3 * perceptron + attention) + embedding + head == 50_449_162
    assert _parameters(model) == 50_449_162
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("token_ratio", "token_where"), [(1.0, "input"), (0.5, "input"), (0.5, "edge")]
)
@pytest.mark.usefixtures("double")
def test_literal_derived_network(
    token_ratio: float,
    token_where: str,
    randomise: Callable,
    make_batch: Callable,
    assert_same_gradients: Callable,
) -> None:
    model = randomise(DASViT(TINY, token_ratio=token_ratio, token_where=token_where, **TINY_SIZE))
    images, _ = make_batch()
    actual, expected = model(images), reference.derived(model, images)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    assert_same_gradients(
        (actual * direction).sum(), (expected * direction).sum(), list(model.parameters())
    )


def test_all_tokens_by_default(make_batch: Callable) -> None:
    model = DASViT(TINY, **TINY_SIZE)
    assert model.selector is None
    assert model.forward_features(make_batch()[0]).shape == (3, 1 + 4, 8)


def test_timm_creates_from_a_genotype_its_name_and_its_file(
    tmp_path: Path, make_batch: Callable
) -> None:
    path = tmp_path / "found.json"
    TINY.save(path)
    states = []
    for genotype in (TINY, path, str(path)):
        torch.manual_seed(1)
        model = timm.create_model("dasvit", genotype=genotype, **TINY_SIZE)
        assert isinstance(model, DASViT)
        assert model.genotype == TINY
        assert len(model.cells) == 3
        assert model(make_batch()[0]).shape == (3, 3)
        states.append(model.state_dict())
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)
    named = timm.create_model(
        "dasvit", genotype="dasvit_imagenet100", **(TINY_SIZE | {"embed_dim": 24})
    )
    assert named.genotype == NAMED_GENOTYPES["dasvit_imagenet100"]


def test_timm_creates_the_papers_network() -> None:
    assert "dasvit_base_patch16_224" in timm.list_models("dasvit*")
    with torch.device("meta"):
        model = timm.create_model("dasvit_base_patch16_224", num_classes=10)
    assert model.genotype == NAMED_GENOTYPES["dasvit_cifar10"]
    assert (len(model.cells), model.embed_dim) == (12, 768)
    assert _parameters(model) == 50_449_162
    assert model.default_cfg["input_size"] == (3, 224, 224)
    classifier, first = model.default_cfg["classifier"], model.default_cfg["first_conv"]
    assert model.get_submodule(classifier) is model.get_classifier()
    assert isinstance(model.get_submodule(first), torch.nn.Conv2d)


def test_reset_classifier(make_batch: Callable) -> None:
    model = DASViT(TINY, **TINY_SIZE).double()
    images = make_batch()[0].double()
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert features.shape == (3, 8)

    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model.get_classifier().out_features == 7
    assert model(images).shape == (3, 7)
    assert model(images).dtype == torch.float64

    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(images), features)
    assert not list(model.get_classifier().parameters())


def test_no_classes_from_the_start(make_batch: Callable) -> None:
    model = timm.create_model("dasvit", genotype=TINY, **(TINY_SIZE | {"num_classes": 0}))
    assert model(make_batch()[0]).shape == (3, model.num_features)


def test_dropout_in_the_operations_and_before_the_head() -> None:
    rates = {"drop_rate": 0.2, "proj_drop_rate": 0.3}
    model = timm.create_model("dasvit", genotype=TINY, **rates, **TINY_SIZE)
    assert model.head_drop.p == 0.2
    assert {m.p for m in model.cells.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


def test_a_genotype_as_its_dictionary() -> None:
    assert resolve_genotype(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match="genotype is not a genotype"):
        resolve_genotype({})


def test_unknown_genotypes_are_errors(tmp_path: Path) -> None:
    for genotype in ("dasvit_mnist", str(tmp_path / "missing.json"), tmp_path / "missing.json"):
        with pytest.raises(ValueError, match="neither a shipped genotype") as caught:
            resolve_genotype(genotype)
        assert str(genotype) in str(caught.value)
        assert "dasvit_cifar10" in str(caught.value)
    with pytest.raises(ValueError, match="dasvit_mnist"):
        timm.create_model("dasvit", genotype="dasvit_mnist", **TINY_SIZE)
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        DASViT(path, **TINY_SIZE)


def test_a_genotype_that_does_not_fit_the_width_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"msa_h4.*dim=6"):
        DASViT(TINY, **(TINY_SIZE | {"embed_dim": 6}))
