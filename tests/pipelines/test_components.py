import logging

import pytest
import torch

from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.play import find_components


def spread_of(generator: Generator, vectors: torch.Tensor) -> torch.Tensor:
    z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(9))
    return (generator.mapping(z) @ vectors.T).std(dim=0)


@torch.no_grad()
def test_directions_without_names(generator: Generator) -> None:
    random, before = torch.random.get_rng_state(), {k: v.clone() for k, v in generator.state_dict().items()}
    groups = find_components(generator, count=4)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert {title: [one.name for one in found] for title, found in groups.items()} == {
        "GANSpace": ["ganspace_1", "ganspace_2", "ganspace_3", "ganspace_4"],
        "SeFa": ["sefa_1", "sefa_2", "sefa_3", "sefa_4"],
    }
    for found in groups.values():
        vectors = torch.stack([one.vector for one in found])
        assert torch.allclose(vectors @ vectors.T, torch.eye(4), atol=1e-5)
        assert all(one.strength_range and one.strength_range[0] == -one.strength_range[1] for one in found)
        assert all("Nobody named it" in one.description for one in found)
    principal = torch.stack([one.vector for one in groups["GANSpace"]])
    ends = torch.tensor([one.strength_range[1] for one in groups["GANSpace"] if one.strength_range])
    assert torch.allclose(ends, 2 * spread_of(generator, principal), rtol=0.08)
    assert all(one.layers is None for one in groups["GANSpace"])
    (end,) = {one.strength_range[1] for one in groups["SeFa"] if one.strength_range}
    assert end == pytest.approx(0.8 * spread_of(generator, torch.eye(16)).square().sum().sqrt().item(), rel=0.08)
    assert {one.layers for one in groups["SeFa"]} == {(2, 6)}


def test_the_same_again(generator: Generator) -> None:
    first, second = find_components(generator), find_components(generator)
    for title, found in first.items():
        assert len(found) == 6
        assert all(torch.equal(one.vector, two.vector) for one, two in zip(found, second[title], strict=True))


def test_of_a_smaller_generator() -> None:
    groups = find_components(Generator(GeneratorConfig(16, z_dim=4, w_dim=4, mapping_layers=1, channel_max=8)))
    assert [len(found) for found in groups.values()] == [4, 4]
    assert groups["SeFa"][0].layers == (2, 5)


def test_of_a_generator_without_variety(generator: Generator, caplog: pytest.LogCaptureFixture) -> None:
    for layer in generator.mapping.layers:
        layer.get_parameter("weight").data.zero_()
    generator.synthesis.convs[3].affine.weight.data.zero_()
    with caplog.at_level(logging.WARNING):
        assert find_components(generator) == {}
    assert "no directions of GANSpace: `w` spreads in fewer than 6" in caplog.text
    assert "no directions of SeFa: Every row" in caplog.text
