"""Tests of `editing.text_directions` with a real CLIP of OpenCLIP, tiny and by a rule.

`test_text_directions.py` runs them in a process of their own, since OpenCLIP imports torchvision.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stylegan_inversion import PTIPipeline, cli
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.editing.text_directions import Relevance, load_clip
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.hub import Access
from stylegan_inversion.preprocessing.image import to_tensor
from tests.editing.test_text_directions import unit
from tests.real_packages import fit_torchvision

TORCHVISION = fit_torchvision()
import open_clip  # noqa: E402

TEXTS = ("a face", "a smiling face")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What OpenCLIP saves, as the Hub has it."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 8, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    how = {"mean": [0.48, 0.45, 0.40], "std": [0.26, 0.25, 0.27], "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": how}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_the_texts_change(clip_folder: Path) -> None:
    """By CLIP's own prompts, one at a time."""
    clip, texts = load_clip(clip_folder), []
    for name in ("smiling face", "face"):
        prompts = [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
        assert len(prompts) == 80 and f"a photo of a {name}." in prompts
        each = [clip.network.encode_text(open_clip.tokenize([prompt]))[0].numpy() for prompt in prompts]
        texts.append(unit(np.mean([unit(row) for row in each], axis=0)))
    np.testing.assert_allclose(clip.change(*TEXTS).numpy(), unit(texts[0] - texts[1]), atol=1e-4)
    with pytest.raises(ValueError, match=r"Give two texts that differ, .* got 'a face' and 'the face'"):
        clip.change("a face", "the face")


def test_the_networks_eyes(clip_folder: Path, photo: Image.Image) -> None:
    """A picture is prepared as OpenCLIP itself does it, but for the rounding to bytes."""
    clip, picture = load_clip(clip_folder), photo.resize((64, 64))
    _, prepare = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    theirs = clip.network.encode_image(prepare(picture)[None], normalize=True)
    torch.testing.assert_close(clip(to_tensor(picture)), theirs, atol=0.01, rtol=0)


def test_the_command(
    pti: PTIPipeline, clip_folder: Path, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The relevance is measured once and travels with the model; the second text finds it. Then an edit."""
    pti.save_pretrained(tmp_path / "model")
    few = ["--num-samples", "64", "--num-tests", "8", "--device", "cpu", "--beta", "0.01"]
    first = ["find-directions", str(tmp_path / "model"), "--output", str(tmp_path / "copy"), *few, "--scores", "age"]
    assert cli.main([*first, "--num-images", "2", "--text", *TEXTS, "--clip", str(clip_folder)]) == 0
    assert "channel" in capsys.readouterr().err
    again = ["find-directions", str(tmp_path / "copy"), *few, "--text", "face", "old face", "--name", "older"]
    assert cli.main([*again, "--scores"]) == 2  # whoever made the model would choose what is fetched
    assert f"was measured with the CLIP '{clip_folder.name}': give it, or another" in capsys.readouterr().err
    assert cli.main([*again, "--scores", "--clip", str(clip_folder)]) == 0
    shown = capsys.readouterr()
    assert "relevance of S" not in shown.err and "older_s" in shown.out
    found = load_directions(tmp_path / "copy" / "directions")
    assert {"smile", "smiling_s", "older_s"} <= {*found}
    assert found["smiling_s"].space == "s" and "From 'a face' to 'a smiling face'" in found["smiling_s"].description
    known, clip = Relevance.load(tmp_path / "copy" / "relevance", pti.generator), load_clip(clip_folder)
    torch.testing.assert_close(
        found["smiling_s"].step, known.step(clip.change(*TEXTS), beta=0.01), atol=1e-5, rtol=1e-4
    )
    photo.save(tmp_path / "photo.png")
    edit = ["--method", "pti", "--num-w-steps", "1", "--num-tuning-steps", "0", "--no-align", "--edit", "smiling_s=3"]
    invert = ["invert", str(tmp_path / "photo.png"), "--model", str(tmp_path / "copy"), *edit]
    assert cli.main([*invert, "--output", str(tmp_path / "out")]) == 0
    pictures = [Image.open(path).tobytes() for path in (tmp_path / "out" / "photo").glob("*.png")]
    assert len(pictures) >= 3


def test_what_is_no_clip(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no open_clip_config\.json: it is no CLIP that OpenCLIP saved"):
        load_clip(tmp_path)
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file({"x": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="holds no CLIP that OpenCLIP reads"):
        load_clip(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its hf_tokenizer_name names parts of transformers, which may fetch"):
        load_clip(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"or give the folder that holds open_clip_config.json and open_clip"):
        load_clip("organisation/clip", Access(cache_dir=tmp_path / "cache", local_files_only=True))
