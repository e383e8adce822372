"""The edit directions that ship with faces64 do what their names say. See step 9 of recipes/faces64/README.md."""

import pytest
import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.editing.directions import Direction, load_directions
from stylegan_inversion.evaluation.editability import load_face_scorer
from stylegan_inversion.models.face import EXPRESSIONS, FaceScorer, landmark_distances, landmark_yaw
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.storage import builtin_path, load_module

NAMES = ["smile", "age", "gender", "yaw", "mouth_open", "pitch"]
SEED = 20_000_000  # `find_directions` draws from other seeds
NUM_STRENGTHS = 7
# a little below the shares in the card
LEAST_SHARES = {"smile": 0.8, "age": 0.87, "gender": 0.9, "yaw": 0.9, "pitch": 0.9, "mouth_open": 0.87}


@pytest.fixture(scope="module")
def directions() -> dict[str, Direction]:
    return load_directions(builtin_path("faces64/directions"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    generator = load_module(Generator, GeneratorConfig, builtin_path("faces64/generator"))
    generator.synthesis.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    return generator


@pytest.fixture(scope="module")
def scorer() -> FaceScorer:
    return load_face_scorer()


def one_score(scorer: FaceScorer, name: str, x: Tensor) -> Tensor:
    """`scorer(x)[name]`, with only the network that it needs."""
    if name == "smile":
        logits, happy = scorer.expression(x), EXPRESSIONS.index("happy")
        return logits[:, happy] - torch.cat([logits[:, :happy], logits[:, happy + 1 :]], dim=1).logsumexp(dim=1)
    if name == "yaw":
        return landmark_yaw(scorer.landmarks(x))
    if name in ("age", "gender"):
        return scorer.recognition.age_and_gender(x)[("age", "gender").index(name)]
    return landmark_distances(scorer.landmarks(x))[name]


@torch.no_grad()
def curves(generator: Generator, scorer: FaceScorer, direction: Direction, *, count: int, seed: int) -> Tensor:
    """The score a direction is named after on unseen w, (count, strengths), lowest strength first."""
    assert direction.strength_range is not None
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    w_plus = latents.broadcast(generator.mapping(z), generator.num_ws)
    columns = []
    for strength in torch.linspace(*direction.strength_range, NUM_STRENGTHS).tolist():
        moved = direction.apply(w_plus, strength)
        images = [generator.synthesis(part).clamp(-1, 1) for part in moved.split(8)]
        columns.append(torch.cat([one_score(scorer, direction.name, x) for x in images]))
    return torch.stack(columns, dim=1)


def test_shipped_directions_are_usable(directions: dict[str, Direction], generator: Generator) -> None:
    assert list(directions) == NAMES
    for name, direction in directions.items():
        assert direction.name == name
        assert direction.vector.shape == (generator.config.w_dim,)
        assert direction.vector.norm().item() == pytest.approx(1, abs=1e-5)
        assert direction.strength_range is not None
        low, high = direction.strength_range
        assert low == -high and high >= 1.5  # 0 is the middle one of the strengths
        assert direction.description
    vectors = torch.stack([directions[name].vector for name in NAMES])
    assert (vectors @ vectors.T - torch.eye(len(NAMES))).abs().max() < 0.4  # they differ


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("count", "seed"), [(24, SEED), pytest.param(500, SEED + 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_score_rises_with_strength(
    count: int, seed: int, name: str, directions: dict[str, Direction], generator: Generator, scorer: FaceScorer
) -> None:
    scores = curves(generator, scorer, directions[name], count=count, seed=seed)
    rising = (scores.diff(dim=1) > 0).all(dim=1)
    assert rising.double().mean().item() >= LEAST_SHARES[name]
