import pytest
import torch

from stylegan_inversion.editing.sefa import factorize
from tests.conformance import draw, load_case, relative_error


def test_conformance() -> None:
    case, theirs = load_case("editing")
    # Layer 0 is `conv1`, layer k is `convs.{k - 1}`; the official run takes the layers 2 to 5.
    keys = [f"convs.{layer - 1}.conv.modulation.weight" for layer in (2, 3, 4, 5)]
    rule = case["inputs"]["convs.{0..7}.conv.modulation.weight"]["rule"]
    directions, eigenvalues = factorize([torch.from_numpy(draw(k, [512, 512], rule, case["seed"])) for k in keys], 8)
    cosines = (directions * theirs["sefa_directions_top8"]).sum(dim=1).abs()
    assert cosines.min() >= 0.999
    assert relative_error(eigenvalues, theirs["sefa_eigenvalues_top8"]) <= 1e-3


def test_directions_are_an_orthonormal_basis_in_falling_order() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(channels, 8, generator=generator) for channels in (16, 4)]
    directions, eigenvalues = factorize(weights)
    torch.testing.assert_close(directions @ directions.T, torch.eye(8))
    assert (eigenvalues.diff() <= 0).all() and (eigenvalues >= 0).all()
    assert eigenvalues.sum().item() == pytest.approx(20, abs=1e-4)  # one for each row of unit norm
    rows = torch.cat([weight / weight.norm(dim=1, keepdim=True) for weight in weights])
    torch.testing.assert_close((rows @ directions.T).square().sum(dim=0), eigenvalues)
    assert (directions.amax(dim=1) == directions.abs().amax(dim=1)).all()
