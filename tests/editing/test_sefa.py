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
