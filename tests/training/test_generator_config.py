from pathlib import Path
from typing import Any

import pytest
from stylegan_inversion.training.generator_config import (
    AdaptiveOptions,
    AdversarialOptions,
    AutoencoderConfig,
    DiscriminatorOptions,
    GANConfig,
    GeneratorOptions,
    GeneratorRun,
    ReconstructionOptions,
)
from stylegan_inversion.training.methods import METHODS, load_config

from stylegan_inversion.training.augment import AugmentOptions
from stylegan_inversion.training.config import OptimizerOptions, TrainConfig

RECIPES = Path(__file__).parents[2] / "recipes"
CLASSES: list[type[GeneratorRun]] = [GANConfig, AutoencoderConfig]


def test_defaults_are_those_of_stylegan2() -> None:
    config = GANConfig(data="faces")
    options = config.adversarial
    assert (options.r1, options.r1_every) == (10.0, 16)
    assert (options.path_length, options.path_length_every, options.path_length_shrink) == (2.0, 4, 2)
    assert (options.style_mixing, options.w_avg_decay) == (0.9, 0.998)
    assert (options.ema_kimg, options.ema_rampup) == (10.0, 0.05)
    assert options.reuse_samples is False
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.betas) == ("adam", 2.5e-3, [0.0, 0.99])
    assert (config.optimizer.schedule, config.optimizer.warmup, config.extendable) == ("constant", 0.0, True)
    assert (config.ada.p, config.ada.target, config.ada.kimg) == (0.0, 0.6, 500.0)
    assert config.augment == AugmentOptions() and config.discriminator.group_size == 4
    assert config.discriminator.kind == "stylegan2" and config.discriminator.lr is None
    assert config.discriminator.networks == ["perceptual"] and config.discriminator.face_resolution == 112
    assert config.reconstruction.batch_size == 0 and config.mirror
    sizes = config.generator
    assert (sizes.resolution, sizes.z_dim, sizes.w_dim, sizes.mapping_layers) == (None, 512, 512, 8)
    assert (sizes.mapping_lr_multiplier, sizes.channel_base, sizes.channel_max) == (0.01, 32768, 512)


def test_defaults_of_the_warm_start() -> None:
    config = AutoencoderConfig(data="faces")
    options = config.reconstruction
    assert (options.weight, options.lpips, options.w_noise) == (1.0, 2.0, 0.1)
    assert (config.ema_decay, config.input_resolution, config.components) == (0.995, 64, 256)
    assert config.optimizer.schedule == "cosine" and not config.extendable
    assert (config.component_images, config.prior_images) == (6000, 1000)


def test_two_configs_share_nothing() -> None:
    one, other = GANConfig(data="faces"), GANConfig(data="faces")
    one.optimizer.lr = one.adversarial.r1 = one.ada.p = 0.5
    assert other == GANConfig(data="faces") and one != other


@pytest.mark.parametrize("method", ["gan", "autoencoder"])
def test_yaml_and_overrides(tmp_path: Path, method: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"method: {method}\ndata: faces\nsteps: 1000\noptimizer: {{lr: 1e-3}}\ngenerator: {{w_dim: 64}}\n")
    config = load_config(path, ["steps=2000", "optimizer.betas=[0.1,0.9]", "generator.resolution=32", "seed=3"])
    assert type(config) is METHODS[method].config and isinstance(config, GeneratorRun)
    assert (config.method, config.steps, config.seed) == (method, 2000, 3)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.betas) == ("adam", 1e-3, [0.1, 0.9])
    assert config.generator == GeneratorOptions(resolution=32, w_dim=64)
    assert load_config(None, [f"method={method}", "data=faces"]) == METHODS[method].config(data="faces")


def test_overrides_of_every_part() -> None:
    config = load_config(
        None,
        [
            *("method=gan", "data=faces", "discriminator.channel_max=64", "discriminator.lr=1e-3", "ada.p=0.2"),
            *("adversarial.ema_rampup=null", "augment.color=false", "reconstruction.batch_size=2", "crop_scale=0.74"),
        ],
    )
    assert isinstance(config, GANConfig)
    assert config.discriminator.channel_max == 64 and config.adversarial.ema_rampup is None and config.ada.p == 0.2
    assert config.augment == AugmentOptions(color=False) and config.reconstruction.batch_size == 2
    assert config.crop_scale == 0.74 and config.discriminator.lr == 1e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=stylegan3"], "`method` must be one of psp, e4e, gan, autoencoder, got 'stylegan3'"),
        (["method=gan", "loss.l2=1"], r"does not fit at loss: .*'loss'"),
        (["method=gan", "adversarial.gamma=1"], r"does not fit at adversarial\.gamma"),
        (["method=autoencoder", "adversarial.r1=1"], "does not fit at adversarial"),
        (["adversarial.r1=1"], "does not fit at adversarial"),  # an encoder has none
        (["method=gan", "generator.resolution=large"], r"does not fit at generator\.resolution: Value 'large'"),
        (["method=gan", "discriminator.networks=[]"], "`discriminator.networks` must name at least one of"),
        (["method=gan", "discriminator.networks=[dlib]"], "`discriminator.networks` must be one of .*, got 'dlib'"),
        (
            ["method=gan", "discriminator.face_resolution=102"],
            r"`discriminator.face_resolution` must be >= 103",
        ),
        (["method=gan", "ada.p=2"], r"`ada\.p` must be a share of the run, in \[0, 1\], got 2"),
        (["method=autoencoder", "prior_images=1"], "`prior_images` must be 0, .*, or >= 2, got 1"),
        (["method=gan", "augment.shift=0.7"], r"`augment\.shift` must be in \[0, 0\.5\], got 0\.7"),
    ],
)
def test_bad_overrides(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, ["data=faces", *overrides])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": None}, "`data` must be a folder of pictures, got none"),
        ({"method": "psp"}, "`method` must be one of (gan|autoencoder), got 'psp'"),
        ({"batch_size": 0}, "`batch_size` must be >= 1, got 0"),
        ({"steps": 0}, "`steps` must be >= 1, got 0"),
        ({"crop_scale": 0.0}, r"`crop_scale` must be > 0, got 0\.0"),
        ({"optimizer": OptimizerOptions("adam", 0.0)}, r"`optimizer\.lr` must be > 0, got 0\.0"),
        ({"optimizer": OptimizerOptions("adam", betas=[0.0])}, r"`optimizer\.betas` must be two numbers in \[0, 1\)"),
        ({"optimizer": OptimizerOptions("adam", betas=[0.0, 1.0])}, r"in \[0, 1\), got \[0\.0, 1\.0\]"),
    ],
)
def test_ranges_of_every_run(cls: type[GeneratorRun], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**({"data": "faces"} | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"adversarial": AdversarialOptions(**{name: -1})}, rf"`adversarial\.{name}` must be >= 0, got -1")  # type: ignore[arg-type]
            for name in ("r1", "r1_every", "path_length", "path_length_every")
        ),
        ({"adversarial": AdversarialOptions(r1=float("nan"))}, r"`adversarial\.r1` must be >= 0, got nan"),
        ({"adversarial": AdversarialOptions(path_length_shrink=0)}, r"path_length_shrink` must be >= 1, got 0"),
        ({"adversarial": AdversarialOptions(ema_kimg=0)}, r"`adversarial\.ema_kimg` must be > 0, got 0"),
        ({"adversarial": AdversarialOptions(ema_rampup=0)}, r"`adversarial\.ema_rampup` must be > 0, got 0"),
        ({"adversarial": AdversarialOptions(style_mixing=1.5)}, r"`adversarial\.style_mixing` must be a share"),
        ({"adversarial": AdversarialOptions(w_avg_decay=-0.5)}, r"`adversarial\.w_avg_decay` must be a share"),
        ({"ada": AdaptiveOptions(p=1.1)}, r"`ada\.p` must be a share"),
        ({"ada": AdaptiveOptions(kimg=-1)}, r"`ada\.kimg` must be >= 0, got -1"),
        ({"ada": AdaptiveOptions(target=1)}, r"`ada\.target` must be in \(-1, 1\), got 1"),
        ({"discriminator": DiscriminatorOptions(lr=0)}, r"`discriminator\.lr` must be > 0, got 0"),
        ({"discriminator": DiscriminatorOptions(kind="vit")}, r"`discriminator\.kind` must be one of stylegan2, feat"),
        ({"discriminator": DiscriminatorOptions(width=0)}, r"`discriminator\.width` must be >= 1, got 0"),
        (
            {"reconstruction": ReconstructionOptions(batch_size=-1)},
            r"`reconstruction\.batch_size` must be >= 0, got -1",
        ),
        (
            {"reconstruction": ReconstructionOptions(batch_size=4), "batch_size": 4},
            r"`reconstruction\.batch_size` must be less than `batch_size`, 4, to leave room for samples, got 4",
        ),
    ],
)
def test_ranges_of_gan(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GANConfig(**({"data": "faces"} | values))


@pytest.mark.parametrize("cls", [GANConfig, AutoencoderConfig])
@pytest.mark.parametrize("name", ["weight", "lpips", "w_noise", "encoder_lr"])
def test_ranges_of_reconstructions(cls: type[GeneratorRun], name: str) -> None:
    bad: Any = ReconstructionOptions(**{name: -1})
    with pytest.raises(ValueError, match=rf"`reconstruction\.{name}` must be >=? 0, got -1"):
        cls(data="faces", reconstruction=bad)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema_decay": 1.5}, "`ema_decay` must be a share"),
        ({"components": -1}, "`components` must be >= 0, got -1"),
        ({"component_images": 0}, "`component_images` must be >= 1, got 0"),
        ({"input_resolution": 24}, "`input_resolution` must be a multiple of 16, got 24"),
        ({"input_resolution": 0}, "`input_resolution` must be a multiple of 16, got 0"),
        ({"prior_images": -1}, "`prior_images` must be >= 0, got -1"),
        ({"prior_images": 1}, "`prior_images` must be 0, to leave the mapping .*, or >= 2, got 1"),
    ],
)
def test_ranges_of_the_warm_start(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**({"data": "faces"} | values))


def recipes() -> list[Path]:
    """All of them, without what a run keeps in a hidden folder."""
    found = RECIPES.rglob("*.yaml")
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(RECIPES).parts))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: str(path.relative_to(RECIPES)))
def test_the_recipes_can_be_read(path: Path) -> None:
    config = load_config(path, ["data=faces"])
    assert isinstance(config, (TrainConfig, GeneratorRun)) and config.data == "faces"
