import numpy as np
import pytest
import torch

from stylegan_inversion.models.discriminator import append_minibatch_std
from tests.conftest import rng


@pytest.mark.parametrize(("batch", "group_size"), [(8, 4), (2, 4), (6, 2)])
def test_minibatch_std_against_numpy(batch: int, group_size: int) -> None:
    x = torch.randn(batch, 3, 4, 5, generator=rng())
    num_groups = batch // min(batch, group_size)
    expected = np.empty((batch, 1, 4, 5), np.float32)
    for g in range(num_groups):
        members = x.numpy()[g::num_groups]  # sample n belongs to group n mod num_groups
        expected[g::num_groups] = np.sqrt(members.var(axis=0) + 1e-8).mean()
    y = append_minibatch_std(x, group_size)
    assert torch.equal(y[:, :3], x)
    torch.testing.assert_close(y[:, 3:], torch.from_numpy(expected))
