import copy
import dataclasses

import pytest
import torch

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.inversion.generator_delta import FORMAT, GeneratorDelta, generator_sha256
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.conftest import same, state

WEIGHT = "synthesis.blocks.8.conv1.weight"


def nbytes(delta: GeneratorDelta) -> int:
    return sum(tensor.nbytes for tensor in delta.tensors.values())


@pytest.fixture
def tuned(generator: Generator) -> Generator:
    """Every parameter of the synthesis network and the noise changed a little, the mapping network not."""
    changed = copy.deepcopy(generator)
    rng = torch.Generator().manual_seed(1)
    for parameter in changed.synthesis.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=rng))
    for conv in changed.synthesis.convs:
        conv.noise_const.copy_(torch.randn(conv.noise_const.shape, generator=rng))
    return changed


@pytest.mark.parametrize(("rank", "dtype"), [(1, None), (3, torch.float16)])
def test_low_rank_is_the_best_there_is(
    generator: Generator, tuned: Generator, rank: int, dtype: torch.dtype | None
) -> None:
    delta = GeneratorDelta.between(generator, tuned, rank=rank, dtype=dtype)
    left, right = delta.tensors[f"{WEIGHT}.left"], delta.tensors[f"{WEIGHT}.right"]
    old, new = generator.state_dict()[WEIGHT], tuned.state_dict()[WEIGHT]
    assert left.shape == (len(old), rank) and right.shape == (rank, old[0].numel())
    assert {left.dtype, right.dtype} == {dtype or torch.float32}
    values = torch.linalg.svdvals((new - old).flatten(1).double())
    expected = (values[rank:].square().sum() / values.square().sum()).sqrt().item()
    assert delta.errors[WEIGHT] == pytest.approx(expected, rel=1e-3)
    applied = delta.apply(generator).state_dict()[WEIGHT]
    found = ((applied - new).norm() / (new - old).norm()).item()
    assert found == pytest.approx(expected, rel=1e-2)
    # What has no rank to lose is whole: noise, biases, matrices that would not get smaller.
    assert not any(key.startswith("synthesis.const.l") or ("noise" in key and ".left" in key) for key in delta.tensors)
    assert delta.errors["synthesis.blocks.8.conv1.bias"] < 1e-3
    assert min(delta.errors.values()) < delta.relative_error <= max(delta.errors.values())


def test_energy_and_tall_matrices(generator: Generator, tuned: Generator) -> None:
    delta = GeneratorDelta.between(generator, tuned, energy=0.5)
    assert delta.errors[WEIGHT] ** 2 <= 0.5 + 1e-6
    rank = delta.tensors[f"{WEIGHT}.left"].shape[1]
    fewer = GeneratorDelta.between(generator, tuned, rank=rank - 1)  # one less would not have done
    assert rank > 1 and fewer.errors[WEIGHT] ** 2 > 0.5 - 1e-6
    assert GeneratorDelta.between(generator, tuned, energy=1.0).relative_error < 1e-6
    tall = copy.deepcopy(generator)
    affine = tall.mapping.layers[0].weight  # (16, 8)
    affine.add_(torch.randn(16, 1) @ torch.randn(1, 8))
    delta = GeneratorDelta.between(generator, tall, rank=1)
    assert delta.tensors["mapping.layers.0.weight.left"].shape == (16, 1) and delta.relative_error < 1e-4
    torch.testing.assert_close(delta.apply(generator).mapping.layers[0].weight, affine, atol=1e-4, rtol=1e-4)


def test_half_precision(generator: Generator, tuned: Generator) -> None:
    exact, half = (GeneratorDelta.between(generator, tuned, dtype=dtype) for dtype in (None, torch.float16))
    assert nbytes(half) * 2 == nbytes(exact) and 0 < half.relative_error < 1e-3
    w_plus = torch.randn(1, generator.num_ws, 16)
    drawn, wanted = (each.synthesis(w_plus) for each in (half.apply(generator), tuned))
    assert 0 < (drawn - wanted).abs().max() < 1e-3
    noisy = copy.deepcopy(generator)  # the error of noise counts if nothing else changed
    noisy.synthesis.convs[0].noise_const.add_(0.1)
    assert 0 < GeneratorDelta.between(generator, noisy, dtype=torch.float16).relative_error < 1e-3


def test_options_out_of_range(generator: Generator, tuned: Generator) -> None:
    for options, message in (
        ({"rank": 0}, r"`rank` must be >= 1, got 0\."),
        ({"energy": 0.0}, r"`energy` must be in \(0, 1\], got 0\.0\."),
        ({"energy": 1.1}, r"`energy` must be in \(0, 1\], got 1\.1\."),
        ({"rank": 1, "energy": 0.5}, r"Give `rank` or `energy`, not both: got 1 and 0\.5\."),
        ({"dtype": torch.int8}, r"`dtype` must be a floating-point type such as torch.float16, got torch.int8\."),
    ):
        with pytest.raises(ValueError, match=message):
            GeneratorDelta.between(generator, tuned, **options)
    small = Generator(GeneratorConfig(16, z_dim=8, w_dim=16, mapping_layers=2, channel_base=256, channel_max=16))
    with pytest.raises(ValueError, match=r"`tuned` must have the sizes of `base`, .*=32.*, got .*=16"):
        GeneratorDelta.between(generator, small)
    tuned.synthesis.const[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"`dtype` torch.float16 cannot hold the change of 'synthesis.const'"):
        GeneratorDelta.between(generator, tuned, dtype=torch.float16)
    tuned.synthesis.const[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"`tuned` holds NaN or infinity in 'synthesis.const'"):
        GeneratorDelta.between(generator, tuned)


def test_tensors_and_texts(generator: Generator, tuned: Generator) -> None:
    delta = GeneratorDelta.between(generator, tuned, rank=2)
    tensors, texts = delta.to_tensors()
    again = GeneratorDelta.from_tensors(tensors, texts)
    assert again.relative_error == delta.relative_error and again.errors == delta.errors
    assert generator_sha256(again.apply(generator)) == generator_sha256(delta.apply(generator))
    for change, message in (
        ({"format": "other"}, f"must say format {FORMAT} and a sha256"),
        ({"base_sha256": "123"}, "the header must say"),
        ({"errors": "{"}, "The header of the change is damaged: JSONDecodeError"),
        ({"relative_error": "much"}, "The header of the change is damaged: ValueError"),
    ):
        with pytest.raises(CheckpointError, match=message):
            GeneratorDelta.from_tensors(tensors, {**texts, **change})
    one = torch.ones(1)
    for added, message in (
        ({"x.code": one}, r"holds 'x.code', which must end in one of value, difference, left, right\."),
        ({"x.left": one}, r"The change of 'x' is incomplete: it holds \['left'\]\."),
        ({"x.value": one, "x.difference": one}, r"incomplete: it holds \['difference', 'value'\]"),
        ({"x.value": one.to(torch.int64)}, r"The change of 'x' must be floating-point numbers\."),
    ):
        with pytest.raises(CheckpointError, match=message):
            GeneratorDelta.from_tensors({**tensors, **added}, texts)


def test_a_change_that_does_not_fit_leaves_the_base_alone(generator: Generator, tuned: Generator) -> None:
    before = state(generator)
    delta = GeneratorDelta.between(generator, tuned, rank=2)
    for change, message in (
        ({"x.value": torch.ones(1)}, r"The change holds 'x', which the generator does not have\."),
        ({"w_avg.value": torch.ones(1)}, r"The change of 'w_avg' does not fit its shape \(16,\): it is \(1,\)"),
        ({f"{WEIGHT}.left": torch.ones(3, 2)}, rf"The change of '{WEIGHT}' does not fit its shape"),
        (  # 400 kB that would become 40 GB
            {f"{WEIGHT}.left": torch.ones(100_000, 1), f"{WEIGHT}.right": torch.ones(1, 100_000)},
            rf"The change of '{WEIGHT}' does not fit its shape .*: its factors are \(100000, 1\) and \(1, 100000\)",
        ),
        (
            {"w_avg.left": torch.ones(16, 1), "w_avg.right": torch.ones(1, 1)},
            r"The change of 'w_avg' does not fit its shape \(16,\): its factors are",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            dataclasses.replace(delta, tensors={**delta.tensors, **change}).apply(generator)
    assert same(state(generator), before)
