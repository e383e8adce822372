import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.models.feature_discriminator import FeatureDiscriminator
from stylegan_inversion.training.generator_config import DiscriminatorOptions, GANConfig, GeneratorOptions
from stylegan_inversion.training.generator_model import (
    check_groups,
    check_side,
    export_model,
    grow_generator,
    load_part,
    make_discriminator,
    make_generator,
    open_pictures,
)

from stylegan_inversion import E4EPipeline, PTIPipeline, hub, latents, ops
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.training.conftest import MakeGAN, MakeLearner, save_model, tiny_generator
from tests.training.test_checkpoint import same


def load(model: Path) -> Generator:
    return hub.load_module(Generator, GeneratorConfig, model / "generator")


@torch.no_grad()
@pytest.mark.parametrize("resolution", [32, 64])
def test_a_grown_generator_draws_the_old_pictures_enlarged(model: Path, resolution: int) -> None:
    old = load(model)
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    for side in (4, 8, 16):
        old.synthesis.get_parameter(f"blocks.{side}.to_rgb.bias").uniform_(-0.5, 0.5)
    new = grow_generator(old, resolution)
    assert new.config.resolution == resolution and new.num_ws == latents.num_ws(resolution)
    w = old.mapping(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(new.mapping(torch.ones(1, 8)), old.mapping(torch.ones(1, 8)))
    assert torch.equal(new.w_avg, old.w_avg)
    expected = old.synthesis(latents.broadcast(w, old.num_ws))
    for _ in range(resolution // 32):
        expected = ops.upsample_2x(expected)
    assert torch.equal(new.synthesis(latents.broadcast(w, new.num_ws)), expected)
    changed = {name for name, tensor in old.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"synthesis.blocks.{side}.to_rgb.bias" for side in (4, 8, 16)}  # by this test alone


def test_a_grown_generator_learns_in_its_new_blocks(model: Path) -> None:
    new = grow_generator(load(model), 32).requires_grad_(True)
    w_plus = latents.broadcast(new.mapping(torch.randn(2, 8)), new.num_ws)
    new.synthesis(w_plus).square().sum().backward()
    moves = new.synthesis.get_parameter("blocks.32.to_rgb.weight").grad
    assert moves is not None and moves.abs().sum() > 0


def test_make_generator(model: Path) -> None:
    new = make_generator(tiny_generator(32), None)
    assert new.config == GeneratorConfig(32, z_dim=8, w_dim=16, mapping_layers=2, channel_base=128, channel_max=8)
    small = GeneratorOptions(z_dim=4, w_dim=4, mapping_layers=1, channel_base=256, channel_max=2)
    assert make_generator(small, None).config.resolution == 256
    for resolution in (None, 16):
        assert same(
            dict(make_generator(GeneratorOptions(resolution), model).state_dict()), dict(load(model).state_dict())
        )
    grown = make_generator(GeneratorOptions(32), model)  # sizes other than its resolution are those of `init`
    assert grown.config == GeneratorConfig(32, z_dim=8, w_dim=16, mapping_layers=2, channel_base=128, channel_max=8)


def test_bad_generators(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"`init`: .* holds no generator \(folder 'generator'\)"):
        make_generator(GeneratorOptions(), tmp_path)
    large = save_model(tmp_path / "large", resolution=32)
    with pytest.raises(ValueError, match=r"`generator\.resolution` is 16, but `init` brings a generator of 32 px"):
        make_generator(GeneratorOptions(16), large)
    with pytest.raises(ValueError, match="power of two"):
        make_generator(GeneratorOptions(48), model)
    (model / "generator" / hub.WEIGHTS_NAME).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        make_generator(GeneratorOptions(), model)


def test_make_discriminator(model: Path, tmp_path: Path) -> None:
    perceptual, sizes = load_perceptual(), load(model).config
    new = make_discriminator(DiscriminatorOptions(), sizes, model, perceptual=perceptual)
    assert new.config == DiscriminatorConfig(16, channel_base=128, channel_max=8, group_size=4)
    own = DiscriminatorOptions(channel_base=256, channel_max=4, group_size=2)
    other = make_discriminator(own, sizes, None, perceptual=perceptual)
    assert other.config == DiscriminatorConfig(16, channel_base=256, channel_max=4, group_size=2)
    hub.save_module(other, model / "discriminator")
    loaded = make_discriminator(DiscriminatorOptions(), sizes, model, perceptual=perceptual)
    assert loaded.config == other.config and same(dict(loaded.state_dict()), dict(other.state_dict()))
    large = GeneratorConfig(32, channel_base=128)
    with pytest.raises(ValueError, match=r"a discriminator of 16 px; the generator draws 32 px\. .*\.new=true"):
        make_discriminator(DiscriminatorOptions(), large, model, perceptual=perceptual)
    another = make_discriminator(DiscriminatorOptions(new=True), large, model, perceptual=perceptual)
    assert another.config == DiscriminatorConfig(32, channel_base=128, channel_max=512, group_size=4)


def test_make_a_discriminator_on_features(model: Path) -> None:
    perceptual, options = load_perceptual(), DiscriminatorOptions(kind="features", width=4)
    sizes = GeneratorConfig(32, channel_base=128)
    new = make_discriminator(options, sizes, model, perceptual=perceptual)
    assert isinstance(new, FeatureDiscriminator) and new.config.channels == (64, 192, 384, 256, 256)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    hub.save_module(new, model / "discriminator")
    loaded = make_discriminator(options, sizes, model, perceptual=perceptual)
    assert torch.equal(loaded.eval()(x), new.eval()(x))
    # One of another kind is not taken over
    own = make_discriminator(DiscriminatorOptions(), sizes, model, perceptual=perceptual)
    assert isinstance(own, Discriminator)
    hub.save_module(own, model / "discriminator")
    assert isinstance(make_discriminator(options, sizes, model, perceptual=perceptual), FeatureDiscriminator)
    with pytest.raises(ValueError, match=r"does not take pictures of 16 px.* set discriminator\.networks=\[face\]"):
        make_discriminator(options, GeneratorConfig(16, channel_base=128), None, perceptual=perceptual)


def test_networks_that_a_discriminator_judges_by(model: Path, pictures: Path) -> None:
    perceptual, sizes = load_perceptual(), GeneratorConfig(32, channel_base=128)
    folder = open_pictures(str(pictures), GANConfig(data=str(pictures)), side=32, training=False)
    counts = {"perceptual": (64, 192, 384, 256, 256), "face": (32, 64, 128, 256, 256)}
    for networks in (["face"], ["perceptual", "face"]):
        options = DiscriminatorOptions(kind="features", networks=networks, width=4, face_resolution=120)
        new = make_discriminator(options, sizes, model, perceptual=perceptual, pictures=folder)
        assert isinstance(new, FeatureDiscriminator) and new.features is not None
        assert new.config.channels == sum((counts[name] for name in networks), ())
        assert folder is not None
        y = torch.stack([folder[index]["y"] for index in range(len(folder))])
        for norm, layer in zip(new.norms, new.features(y)):  # it was fitted to them
            assert norm(layer).mean(dim=(0, 2, 3)).abs().max() < 1e-3
        assert new.features(y)[-5].shape[2] == 28  # of the face network's first stage at 120 px
    hub.save_module(new, model / "discriminator")
    loaded = make_discriminator(options, sizes, model, perceptual=perceptual)
    assert torch.equal(loaded.eval()(y), new.eval()(y))
    options.networks = ["face"]
    with pytest.raises(ValueError, match=r"of \(64, .*\) channels; those of .*networks=\['face'\] have \(32"):
        make_discriminator(options, sizes, model, perceptual=perceptual)
    options.new = True
    another = make_discriminator(options, sizes, model, perceptual=perceptual)
    assert isinstance(another, FeatureDiscriminator) and another.config.channels == counts["face"]


def test_groups() -> None:
    discriminator = Discriminator(DiscriminatorConfig(16, channel_base=64, channel_max=4, group_size=4))
    for batch_size in (1, 2, 3, 4, 8, 12):
        check_groups(discriminator, batch_size)
        discriminator(torch.zeros(batch_size, 3, 16, 16))
    for batch_size in (5, 6, 7, 9):
        with pytest.raises(
            ValueError, match=f"multiple of the discriminator's group size, 4, or less, got {batch_size}"
        ):
            check_groups(discriminator, batch_size)


def test_sides() -> None:
    perceptual = load_perceptual()
    for side in (31, 32, 4096):  # no such picture is made
        check_side(perceptual, side, otherwise="nothing")
    with pytest.raises(
        ValueError, match=r"network 'alex' does not take pictures of 30 px: Images must be at least 31.*set a=0\."
    ):
        check_side(perceptual, 30, otherwise="a=0")


def test_open_pictures(make_gan: MakeGAN, pictures: Path) -> None:
    config = make_gan(mirror=True)
    assert open_pictures(None, config, side=16, training=True) is None
    mirrored = set()
    for mirror in (True, False):
        config = make_gan(mirror=mirror)
        training = open_pictures(str(pictures), config, side=16, training=True)
        plain = open_pictures(str(pictures), config, side=16, training=False)
        assert training is not None and plain is not None and len(training) == len(plain) == 10
        for position in range(40):
            example = training[position]
            y = plain[example["index"]]["y"]
            assert example["y"].shape == (3, 16, 16)
            same_way, other_way = torch.equal(example["y"], y), torch.equal(example["y"], y.flip(-1))
            assert same_way != other_way and (mirror or same_way)
            mirrored.add((mirror, other_way))
    assert mirrored == {(True, True), (True, False), (False, False)}
    with pytest.raises(ValueError, match="nowhere"):
        open_pictures("nowhere", config, side=16, training=True)


def test_load_part(model: Path, warm: Path) -> None:
    assert load_part(None, "generator", Generator, GeneratorConfig) is None
    assert load_part(model, "autoencoder", ImageEncoder, ImageEncoderConfig) is None
    assert load_part(warm, "autoencoder", ImageEncoder, ImageEncoderConfig) is not None
    (warm / "autoencoder" / hub.WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError):
        load_part(warm, "autoencoder", ImageEncoder, ImageEncoderConfig)


def test_export_without_init(tmp_path: Path, photo: Image.Image) -> None:
    generator, folder = load(save_model(tmp_path / "model", resolution=32)), tmp_path / "export"
    (folder / "generator").mkdir(parents=True)
    (folder / f".files.{2**22 + 1}.abcd1234.partial").mkdir()  # of a process that cannot be
    export_model(folder, {"generator": generator}, init=None, crop_scale=None)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        *("config.json", "config.json", "model.safetensors"),
    ]
    pipeline = PTIPipeline.from_pretrained(folder)
    assert pipeline.crop_scale == 1.0 and not pipeline.directions and pipeline.pivots == ("w", "w_plus")
    assert same(dict(pipeline.generator.state_dict()), dict(generator.state_dict()))
    export_model(folder, {"generator": generator}, init=None, crop_scale=0.74)
    assert PTIPipeline.from_pretrained(folder).crop_scale == 0.74
    out = pipeline(photo, align=False, num_w_steps=2, num_tuning_steps=2)
    assert out.images[0].size == (32, 32) and out.w_plus.shape == (1, 8, 16)


def test_export_keeps_the_settings_of_init_and_nothing_of_its_generator(
    make_learner: MakeLearner, model: Path, tmp_path: Path
) -> None:
    make_learner(method="e4e").export(tmp_path / "e4e")
    init = tmp_path / "e4e"
    config = json.loads((init / hub.CONFIG_NAME).read_text())
    hub.write_config(config | {"_class_name": "E4EPipeline", "pti": {"projector": {"num_steps": 2}}}, init)
    E4EPipeline.from_pretrained(init)
    hub.save_module(ImageEncoder(ImageEncoderConfig(16, 16, (2, 2, 2, 2))), init / "autoencoder")
    folder = tmp_path / "export"
    parts: dict[str, torch.nn.Module] = {
        "generator": load(model),
        "discriminator": Discriminator(DiscriminatorConfig(16, channel_base=64, channel_max=4)),
    }
    export_model(folder, parts, init=init, crop_scale=None)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "discriminator", "generator"]
    pipeline = PTIPipeline.from_pretrained(folder)
    assert pipeline.crop_scale == 0.9 and pipeline.projector.num_steps == 2
    assert not pipeline.directions and pipeline.pivots == ("w", "w_plus")
    assert json.loads((folder / hub.CONFIG_NAME).read_text())["_class_name"] == "PTIPipeline"
    export_model(folder, parts, init=init, crop_scale=0.5)
    assert PTIPipeline.from_pretrained(folder).crop_scale == 0.5


def test_a_generator_alone_can_be_init(model: Path, tmp_path: Path) -> None:
    (model / hub.CONFIG_NAME).unlink()
    export_model(tmp_path / "export", {"generator": load(model)}, init=model, crop_scale=None)
    assert PTIPipeline.from_pretrained(tmp_path / "export").crop_scale == 1.0
