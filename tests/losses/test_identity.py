from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.losses.identity import (
    ArcFaceEmbedding,
    FaceResEmbedding,
    IdentityEmbedding,
    IdentityLoss,
    MoCoEmbedding,
    load_identity,
    load_moco,
)
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from stylegan_inversion.storage import save_module

ARCFACE = ArcFaceConfig(widths=(4, 6, 8, 10), units=(1, 1, 1, 1), reduction=2, resolution=32, embedding_dim=5)
RESNET = ResNetConfig((4, 4, 4, 4), (1, 1, 1, 1))


def images(seed: int, count: int = 2, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def arcface() -> ArcFaceEmbedding:
    return seeded(lambda: ArcFaceEmbedding(ArcFace(ARCFACE)))


def faceres() -> FaceResEmbedding:
    embedding = load_identity()  # random weights on pixels in [0, 255] saturate its ReLU6
    assert isinstance(embedding, FaceResEmbedding)
    return embedding


def moco() -> MoCoEmbedding:
    return seeded(lambda: MoCoEmbedding(ResNet(RESNET)))


BUILDERS = [arcface, faceres, moco]
every_loss = pytest.mark.parametrize(
    "build", [lambda each=each: IdentityLoss(each()) for each in BUILDERS], ids=[each.__name__ for each in BUILDERS]
)


@pytest.mark.parametrize("build", BUILDERS)
def test_unit_norm_similarity_and_loss(build: Callable[[], IdentityEmbedding]) -> None:
    embedding, a, b = build(), images(1), images(2)
    e, f = embedding.embed(a), embedding.embed(b)
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    similarity = F.cosine_similarity(e, f)
    assert (similarity < 0.9999).all()
    torch.testing.assert_close(IdentityLoss(embedding)(a, b), (1 - similarity).mean())
    torch.testing.assert_close(embedding.embed(a[:1]), e[:1], atol=1e-6, rtol=1e-5)  # samples do not mix


@pytest.mark.parametrize("count", [1, 3])  # the original fails on a batch of one
def test_moco_formula(count: int) -> None:
    embedding, y_hat, y = moco(), images(1, count), images(2, count)
    features = [embedding.network(F.interpolate(x, size=224, mode="nearest")) for x in (y_hat, y)]
    expected = (1 - F.cosine_similarity(*features)).mean()
    torch.testing.assert_close(IdentityLoss(embedding)(y_hat, y), expected, atol=1e-6, rtol=1e-5)


@every_loss
def test_train_mode_of_a_parent_changes_nothing(build: Callable[[], nn.Module]) -> None:
    loss = build()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    expected = loss(images(1), images(2))
    parent = nn.ModuleList([loss]).train()
    assert parent.training and not any(m.training for m in loss.modules() if m is not loss)
    assert torch.equal(loss(images(1), images(2)), expected)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


def test_arcface_sees_the_inner_face_and_faceres_the_whole_crop() -> None:
    x = images(1, side=256)
    border = x.clone()
    border[:, :, :35] = border[:, :, 223:] = 1.0
    border[:, :, :, :32] = border[:, :, :, 220:] = 1.0
    assert torch.equal(arcface().embed(x), arcface().embed(border))
    assert not torch.allclose(faceres().embed(x), faceres().embed(border))


def test_loading(tmp_path: Path) -> None:
    builtin = load_identity()
    assert isinstance(builtin, FaceResEmbedding) and builtin.name == "builtin" and not builtin.training
    assert builtin.embed(images(0)).shape == (2, 1024)
    save_module(arcface().network, tmp_path / "arcface")
    embedding = load_identity("mine", tmp_path / "arcface")
    assert isinstance(embedding, ArcFaceEmbedding) and embedding.name == "mine"
    assert torch.equal(embedding.embed(images(3)), arcface().embed(images(3)))
    save_module(moco().network, tmp_path / "moco")
    loaded = load_moco(tmp_path / "moco")
    assert loaded.network.config == RESNET and torch.equal(loaded.embed(images(1)), moco().embed(images(1)))


def test_another_network_is_refused(tmp_path: Path) -> None:
    save_module(faceres().network, tmp_path)
    with pytest.raises(CheckpointError, match="is of a 'FaceRecognitionNet', not of a ArcFace"):
        load_identity("faceres", tmp_path)
    with pytest.raises(CheckpointError, match="is of a 'FaceRecognitionNet', not of a ResNet"):
        load_moco(tmp_path)
