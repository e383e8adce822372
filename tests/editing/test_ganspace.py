import torch

from stylegan_inversion.editing.ganspace import PrincipalComponents, fit_pca, set_coordinate
from tests.conformance import draw_state_dict, load_case, relative_error


def principal(w_dim: int = 8) -> PrincipalComponents:
    generator = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(w_dim, w_dim, generator=generator)).Q[:3]
    return PrincipalComponents(torch.randn(w_dim, generator=generator), axes, torch.tensor([3.0, 2.0, 0.5]))


def codes() -> torch.Tensor:
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))


def test_conformance_edit() -> None:
    case, theirs = load_case("editing")
    spec = {key: case["inputs"][key] for key in ("pca.mean", "pca.std", "w_plus")}
    inputs = draw_state_dict(spec, case["seed"])
    components = PrincipalComponents(inputs["pca.mean"][0], theirs["ganspace_comp"][:, 0], inputs["pca.std"])
    edits = [
        set_coordinate(inputs["w_plus"], components, component=k, layers=(start, stop), coordinate=coordinate)
        for k, start, stop, coordinate in [(54, 7, 8, 5.0), (10, 0, 6, -3.0)]
    ]
    ours = torch.stack(edits, dim=1).flatten(0, 1)  # every edit of a code, then the next code
    assert relative_error(ours, theirs["ganspace_edit"]) <= 1e-4
    moved = inputs["w_plus"].repeat_interleave(2, dim=0)
    assert relative_error(ours - moved, theirs["ganspace_edit"] - moved) <= 1e-4  # not only because most layers stay


def test_coordinate_of_layer_0_is_reached_and_the_input_kept() -> None:
    w_plus, components = codes(), principal()
    before = w_plus.clone()
    moved = set_coordinate(w_plus, components, component=1, coordinate=-2.0)
    assert torch.equal(w_plus, before)
    coordinates = (moved[:, 0] - components.mean) @ components.components.T / components.std
    torch.testing.assert_close(coordinates[:, 1], torch.tensor([-2.0, -2.0]))
    again = set_coordinate(moved, components, component=1, coordinate=-2.0)
    torch.testing.assert_close(again, moved)


def test_every_layer_moves_by_what_layer_0_needs() -> None:
    w_plus, components = codes().double(), principal()
    moved = set_coordinate(w_plus, components, component=0, coordinate=1.0, layers=(2, 4))
    assert moved.dtype == torch.float64
    assert torch.equal(moved[:, [0, 1, 4, 5]], w_plus[:, [0, 1, 4, 5]])
    current = (w_plus[:, 0] - components.mean) @ components.components[0].double() / 3
    for layer in (2, 3):
        step = (moved - w_plus)[:, layer] @ components.components[0].double()
        torch.testing.assert_close(step, 3 * (1 - current))


def test_fit_pca_finds_the_axes() -> None:
    truth = principal()
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(3))
    samples = truth.mean + (noise * truth.std) @ truth.components
    fitted = fit_pca(samples, 3)
    torch.testing.assert_close(fitted.mean, samples.mean(dim=0))
    assert ((fitted.components * truth.components).sum(dim=1).abs() > 0.995).all()
    torch.testing.assert_close(fitted.std, truth.std, rtol=0.05, atol=0)
    # the coordinates of the samples are uncorrelated and of unit variance
    coordinates = (samples - fitted.mean) @ fitted.components.T / fitted.std
    torch.testing.assert_close(coordinates.T.cov(), torch.eye(3), atol=1e-4, rtol=0)
    assert (fitted.components.amax(dim=1) == fitted.components.abs().amax(dim=1)).all()
