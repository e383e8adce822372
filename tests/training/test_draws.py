from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.seeds import seeded, seeded_weights

from stylegan_inversion import hub, latents
from stylegan_inversion.models.generator import Generator, GeneratorConfig


@pytest.fixture
def tiny(model: Path) -> Generator:
    return hub.load_module(Generator, GeneratorConfig, model / "generator")


def draws_of(generator: Generator, *, rank: int = 0, world: int = 1, seed: int = 0) -> Draws:
    process: Any = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=world)
    return Draws(generator, process, seed=seed)


def test_two_processes_draw_what_one_draws(tiny: Generator) -> None:
    one, two = draws_of(tiny), [draws_of(tiny, rank=rank, world=2) for rank in (0, 1)]
    state = torch.get_rng_state()
    for serial in (0, 5):
        whole = one.noise(serial, 4)
        parts = [draws.noise(serial, 2) for draws in two]
        assert len(whole) == tiny.num_ws - 1
        for layer, noise in enumerate(whole):
            assert torch.equal(noise, torch.cat([part[layer] for part in parts]))
        images, w = one.synthesize(serial, 4, side=16)
        halves = [draws.synthesize(serial, 2, side=16) for draws in two]
        torch.testing.assert_close(w, torch.cat([half[1] for half in halves]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(images, torch.cat([half[0] for half in halves]), rtol=1e-4, atol=1e-5)
    for draws in two:  # the discriminator's codes are the same everywhere
        assert torch.equal(one.w(3, 8)[0], draws.w(3, 8)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_draw_is_another(tiny: Generator) -> None:
    draws = draws_of(tiny)
    codes = torch.cat([draws.w(0, 4)[0], draws.w(1, 4)[0], draws_of(tiny, seed=1).w(0, 4)[0]])
    codes = torch.cat([codes, draws.synthesize(0, 4, side=16)[1], draws.synthesize(1, 4, side=16)[1]])
    assert len({tuple(code.tolist()) for code in codes}) == 20
    noise = torch.cat([draws.noise(serial, 3)[0] for serial in (0, 1)])
    assert len({tuple(sample.flatten().tolist()) for sample in noise}) == 6
    w, rng = draws.w(0, 4)
    _, again = draws.w(0, 4)
    assert torch.equal(torch.rand(3, generator=rng), torch.rand(3, generator=again))
    assert w.shape == (4, 16) and not w.requires_grad


def test_samples_are_what_the_generator_draws(tiny: Generator) -> None:
    for conv in tiny.synthesis.convs:
        conv.noise_strength.data.zero_()
    images, w = draws_of(tiny).synthesize(0, 3, side=16)
    expected = tiny.synthesis(latents.broadcast(w, tiny.num_ws), noise_mode="none").clamp(-1, 1)
    torch.testing.assert_close(images, expected)
    assert not images.requires_grad and images.min() >= -1 and images.max() <= 1
    larger, same_w = draws_of(tiny).synthesize(0, 3, side=32)
    assert larger.shape == (3, 3, 32, 32) and torch.equal(same_w, w)
    smaller = torch.nn.functional.adaptive_avg_pool2d(larger, 16)
    assert (smaller - images).abs().mean() < 0.1 < (images - images.mean()).abs().mean()


def test_numbers_and_styles_of_two_processes(tiny: Generator) -> None:
    one, two = draws_of(tiny), [draws_of(tiny, rank=rank, world=2) for rank in (0, 1)]
    whole = one.normal("direction", 2, (4, 3, 5))
    assert torch.equal(whole, torch.cat([draws.normal("direction", 2, (2, 3, 5)) for draws in two]))
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 4
    assert not torch.equal(whole, one.normal("reconstruction", 2, (4, 3, 5)))
    w_plus, w = one.styles("generator", 2, 4, mixing=0.5)
    parts = [draws.styles("generator", 2, 2, mixing=0.5) for draws in two]
    torch.testing.assert_close(w_plus, torch.cat([part[0] for part in parts]))
    torch.testing.assert_close(w, torch.cat([part[1] for part in parts]))
    # Two processes with a micro-batch each draw what one draws with two of them
    micro = [one.styles("generator", serial, 2, mixing=0.5)[0] for serial in (4, 5)]
    assert torch.equal(torch.cat(micro), torch.cat([part[0] for part in parts]))


def test_what_belongs_to_a_number(tiny: Generator) -> None:
    draws = draws_of(tiny)
    first = draws.numbered("progress", [0, 7, 3], 8)
    assert first.shape == (3, 8) and torch.equal(draws.numbered("progress", [3], 8)[0], first[2])
    assert torch.equal(draws_of(tiny, rank=1, world=2).numbered("progress", [7], 8)[0], first[1])
    assert not torch.equal(draws.numbered("other", [3], 8)[0], first[2])


def test_none(tiny: Generator) -> None:
    images, w = draws_of(tiny).synthesize(0, 0, side=32)
    assert images.shape == (0, 3, 32, 32) and w.shape == (0, 16)


def test_seeded() -> None:
    first = torch.rand(4, generator=seeded(0, "w", 0))
    assert torch.equal(first, torch.rand(4, generator=seeded(0, "w", 0)))
    for other in (seeded(1, "w", 0), seeded(0, "noise", 0), seeded(0, "w", 1)):
        assert not torch.equal(first, torch.rand(4, generator=other))


def test_seeded_weights() -> None:
    state = torch.get_rng_state()
    with seeded_weights(3):
        first = torch.nn.Linear(4, 4).weight
    torch.testing.assert_close(torch.get_rng_state(), state)
    torch.rand(5)
    with seeded_weights(3):
        assert torch.equal(torch.nn.Linear(4, 4).weight, first)
    with seeded_weights(4):
        assert not torch.equal(torch.nn.Linear(4, 4).weight, first)
