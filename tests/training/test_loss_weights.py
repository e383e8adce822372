import dataclasses
import math

import pytest

from stylegan_inversion.training.objective import LossWeights

NAMES = [field.name for field in dataclasses.fields(LossWeights)]


def test_defaults_are_those_of_psp_for_faces() -> None:
    used = {name: value for name, value in dataclasses.asdict(LossWeights()).items() if value}
    assert used == {"l2": 1.0, "lpips": 0.8, "identity": 0.1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_bad_weight(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be a finite weight >= 0, got {value}"):
        LossWeights(**{name: value})


def test_identity_and_moco_exclude_each_other() -> None:
    assert LossWeights(identity=0, moco=0.5).moco == 0.5
    with pytest.raises(ValueError, match=r"cannot be used together, got identity=0\.1 and moco=0\.5"):
        LossWeights(moco=0.5)


def test_omegaconf_can_merge_into_it() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.merge(omegaconf.OmegaConf.structured(LossWeights), {"delta": 2e-4})
    assert omegaconf.OmegaConf.to_object(config) == LossWeights(delta=2e-4)
