from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, PSPPipeline
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.preprocessing.align import recrop
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.landmarks import Face

CONFIG = PyramidEncoderConfig(32, 64, w_dim=16, widths=(4, 4, 8, 8), units=(1, 1, 1, 1), reduction=2)


@pytest.mark.parametrize(
    ("pipeline_class", "encoder_class"), [(PSPPipeline, GradualStyleEncoder), (E4EPipeline, Encoder4Editing)]
)
def test_one_pass(
    pipeline_class: type[PSPPipeline] | type[E4EPipeline],
    encoder_class: type[GradualStyleEncoder] | type[Encoder4Editing],
    generator: Generator,
    photo: Image.Image,
    detector: Callable[[Image.Image], list[Face]],
    tmp_path: Path,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = encoder_class(CONFIG)
    pipeline = pipeline_class(generator, encoder, detector=detector)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    out = pipeline([photo, photo], progress=True)
    assert out.generator is generator and out.w_plus.shape == (2, 8, 16)
    with torch.no_grad():
        expected = encoder(to_tensor(recrop(out.crops[0], 64)))
    torch.testing.assert_close(out.w_plus[:1], expected)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())

    folder = pipeline.save_pretrained(tmp_path / "model")
    again = pipeline_class.from_pretrained(folder, detector=detector)
    assert torch.equal(again(photo).w_plus, pipeline(photo).w_plus)
    other = E4EPipeline if pipeline_class is PSPPipeline else PSPPipeline
    with pytest.raises(ModelNotFoundError, match=f"holds no {ENCODERS[other.encoder_kind].network.__name__}"):
        other.from_pretrained(folder)
