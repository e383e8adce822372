"""Files as the papers' code writes them. NVIDIA's source code is not here: `module_src` is a text of our own."""

import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_inversion.checkpoints.encoder import encoder_to_official
from stylegan_inversion.checkpoints.export import checkpoint_to_official
from stylegan_inversion.checkpoints.generator import generator_to_nvidia, generator_to_rosinality
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder
from stylegan_inversion.models.sfe_encoder import StyleFeatureConfig, StyleFeatureEncoder
from stylegan_inversion.ops import blur_kernel

TINY = GeneratorConfig(resolution=64, z_dim=6, w_dim=8, mapping_layers=3, channel_base=256, channel_max=8)
SMALL = GeneratorConfig(resolution=128, z_dim=8, w_dim=8, mapping_layers=2, channel_base=1024, channel_max=12)
FULL = GeneratorConfig()
WIDTHS, UNITS = (4, 6, 8, 10), (1, 3, 2, 1)
ENCODER_SIZES = {
    TINY: PyramidEncoderConfig(64, 64, 8, widths=WIDTHS, units=UNITS, reduction=2),
    SMALL: PyramidEncoderConfig(128, 32, 8, widths=WIDTHS, units=(2, 1, 1, 2), reduction=4),
    FULL: PyramidEncoderConfig(),
}
ARCFACE = ArcFaceConfig(widths=WIDTHS, units=UNITS, reduction=2, resolution=32, embedding_dim=5)
SFE_SIZES = {
    TINY: StyleFeatureConfig(64, 64, 8, widths=WIDTHS, units=UNITS, channels=8, depth=2),
    FULL: StyleFeatureConfig(),
}
RESTYLE = {  # by whether it is on a ResNet-34, which has no squeeze
    False: ReStyleConfig(64, 64, 8, widths=WIDTHS, units=UNITS, reduction=2),
    True: ReStyleConfig(64, 64, 8, widths=WIDTHS, units=UNITS, reduction=0, resnet=True),
}
D_TINY = DiscriminatorConfig(resolution=16, channel_base=64, channel_max=8)
PARTS = ("weight", "bias")
BUFFERS = ("w_avg", "noise_const", "resample_filter")
CLASSES = {"": "Generator", "mapping": "MappingNetwork", "synthesis": "SynthesisNetwork"}


def draw(module: nn.Module, seed: int = 2) -> dict[str, Tensor]:
    """A state dict of the module's names, shapes and types, drawn from a seed."""
    rng = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=rng).to(v.dtype) for k, v in module.state_dict().items()}


def generator(config: GeneratorConfig = TINY) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    return config, draw(Generator(config))


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype and torch.equal(tensor, theirs[key]), key


def encoder(kind: str, config: GeneratorConfig = TINY) -> tuple[PyramidEncoderConfig, dict[str, Tensor]]:
    """An encoder, with the generator's average w in it, as an official file has one for both."""
    sizes = ENCODER_SIZES[config]
    w_avg = generator(config)[1]["w_avg"].repeat(config.num_ws, 1)
    return sizes, {**draw(ENCODERS[kind].network(sizes), seed=3), "pyramid.w_avg": w_avg}


def official(kind: Any, config: GeneratorConfig = TINY, **changes: Any) -> dict[str, Any]:
    """A checkpoint of pSp or e4e as the official code writes it; a change to `None` leaves an entry out."""
    checkpoint = checkpoint_to_official(kind, encoder(kind, config), generator(config))
    checkpoint["opts"] |= {"exp_dir": "/x", "lr": 1e-4, "dataset_type": "ffhq_encode"}
    return {key: value for key, value in {**checkpoint, **changes}.items() if value is not None}


def lively(cls: type[Any], config: Any) -> nn.Module:
    """A network that gives small numbers, with statistics in its batch norms as after a training."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        module = cls(config)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_var", "running_mean", "w_avg", "noise_const")):
                buffer.copy_(torch.rand_like(buffer) + 0.5 if name.endswith("var") else 0.3 * torch.randn_like(buffer))
        for name, parameter in module.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                parameter.data.normal_(0, 0.3)
    return module.eval().requires_grad_(False)


def restyle(*, offsets: bool, resnet: bool = False, **options: Any) -> dict[str, Any]:
    """A checkpoint of ReStyle, the generator beside the encoder."""
    sizes = RESTYLE[resnet]
    encoder = encoder_to_official("restyle", sizes, lively(ReStyleEncoder, sizes).state_dict())[0]
    decoder, w_avg = generator_to_rosinality(TINY, lively(Generator, TINY).state_dict())
    form = "ProgressiveBackboneEncoder" if offsets else "BackboneEncoder"
    form = f"ResNet{form}" if resnet else form
    opts = {"encoder_type": form, "input_nc": 6, "n_iters_per_batch": 3, "output_size": 64, **options}
    tensors = prefixed(encoder, "encoder.") | prefixed(decoder, "decoder.")
    return {"state_dict": tensors, "opts": opts, "latent_avg": w_avg.repeat(TINY.num_ws, 1)}


def lively_e4e(config: GeneratorConfig = TINY) -> dict[str, Any]:
    """A checkpoint of e4e that gives small numbers, with an average w of its own."""
    sizes = ENCODER_SIZES[config]
    encoder = sizes, lively(ENCODERS["e4e"].network, sizes).state_dict()
    return checkpoint_to_official("e4e", encoder, (config, lively(Generator, config).state_dict()))


def style_features(config: GeneratorConfig = TINY, *, whole: bool = True) -> dict[str, Any]:
    """A checkpoint of StyleFeatureEditor; the small one has features of 16 px. A whole one has all that it needs."""
    sizes = SFE_SIZES[config]
    tensors = encoder_to_official("sfe", sizes, lively(StyleFeatureEncoder, sizes).state_dict())[0]
    if not whole:
        return {"state_dict": tensors}
    decoder, w_avg = generator_to_rosinality(TINY, lively(Generator, TINY).state_dict())
    e4e = {key.replace("encoder.", "e4e_encoder.", 1): v for key, v in lively_e4e()["state_dict"].items()}
    tensors |= prefixed(decoder, "decoder.") | {key: v for key, v in e4e.items() if key.startswith("e4e_")}
    return {"state_dict": tensors, "latent_avg": w_avg}


def checkpoint_to_rosinality(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """A generator as rosinality's `.pt` holds it."""
    return dict(zip(("g_ema", "latent_avg"), generator_to_rosinality(config, state_dict)))


def nvidia(config: GeneratorConfig = TINY) -> dict[str, Tensor]:
    """A state dict of NVIDIA's generator."""
    return generator_to_nvidia(*generator(config))


def official_arcface() -> dict[str, Tensor]:
    """The identity network: the backbone of a pSp encoder under a head of its own."""
    backbone = encoder_to_official("psp", *encoder("psp"))[0]
    head = {key.replace("head.", "output_layer."): v for key, v in draw(ArcFace(ARCFACE)).items() if "head." in key}
    return {key: v for key, v in backbone.items() if key.startswith(("input_layer.", "body."))} | head


def rosinality_discriminator(config: DiscriminatorConfig = D_TINY) -> dict[str, Tensor]:
    """Our state dict in the names of rosinality's `Discriminator`, written down independently."""
    sides = [str(2**k) for k in range(config.resolution.bit_length() - 1, 2, -1)]
    names = {"conv0.weight": "conv1.0.weight", "conv0.bias": "conv1.1.bias", "conv1.weight": "conv2.1.weight"}
    names |= {"conv1.bias": "conv2.2.bias", "skip.weight": "skip.1.weight"}
    names |= {"from_rgb.weight": "convs.0.0.weight", "from_rgb.bias": "convs.0.1.bias"}
    names |= {"conv.weight": "final_conv.0.weight", "conv.bias": "final_conv.1.bias"}
    names |= {f"{ours}.{part}": f"final_linear.{k}.{part}" for k, ours in enumerate(("fc", "out")) for part in PARTS}
    official = {f"convs.{k + 1}.conv2.0.kernel": blur_kernel() for k in range(len(sides))}
    for key, tensor in draw(Discriminator(config)).items():
        block, side, rest = key.split(".", 2) if key.startswith("blocks.") else ("", "", key)
        official[f"convs.{sides.index(side) + 1}.{names[rest]}" if block else names[rest]] = tensor
    return official


def without(tensors: dict[str, Tensor], *endings: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in endings)}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


class EasyDict(dict[str, Any]):
    """dnnlib's dict; pickled by its name there."""


class Persistent:
    """What `torch_utils.persistence` makes of a module: a call of `_reconstruct_persistent_obj` with its source."""

    def __init__(self, class_name: str, source: str, **state: Any) -> None:
        hooks = "_backward_hooks _forward_hooks _forward_pre_hooks _state_dict_hooks _load_state_dict_pre_hooks"
        self.meta = EasyDict(
            type="class",
            version=6,
            module_src=source,
            class_name=class_name,
            state={
                "training": False,
                "_is_full_backward_hook": None,
                "_non_persistent_buffers_set": set(),
                "_init_args": (),
                "_init_kwargs": EasyDict(),
                **{name: OrderedDict() for name in hooks.split()},
                **state,
            },
        )

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def network(
    state_dict: Mapping[str, Tensor], *, source: str = "raise SystemExit", prefix: str = "", **state: Any
) -> Persistent:
    """A tree of persistent modules with these tensors."""
    parts: dict[str, Any] = {name: OrderedDict() for name in ("_parameters", "_buffers", "_modules")}
    inside: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        top, _, rest = key.partition(".")
        if rest:
            inside.setdefault(top, {})[rest] = tensor
        elif top in BUFFERS:
            parts["_buffers"][top] = tensor
        else:
            parts["_parameters"][top] = nn.Parameter(tensor)
    for name, tensors in inside.items():
        parts["_modules"][name] = network(tensors, source=source, prefix=name)
    if prefix == "fc0":
        state["bias_gain"] = 0.02
    return Persistent(CLASSES.get(prefix, "SynthesisLayer"), source, activation="lrelu", **parts, **state)


@contextmanager
def nvidia_names() -> Iterator[None]:
    """The names that NVIDIA's files use, while they are written; there is nothing behind them."""
    modules = {name: ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")}

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("NVIDIA's loader was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    EasyDict.__module__ = "dnnlib.util"
    sys.modules.update(modules)
    try:
        yield
    finally:
        EasyDict.__module__ = __name__
        for name in modules:
            del sys.modules[name]


def nvidia_pickle(
    state_dict: Mapping[str, Tensor], *, protocol: int = 3, source: str = "raise SystemExit", **state: Any
) -> bytes:
    """A `.pkl` of stylegan2-ada-pytorch: a dict with three networks and the training set's settings."""
    with nvidia_names():
        small = Persistent("Discriminator", source, _parameters={}, _buffers={}, _modules={})
        held = {
            "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="x.zip", max_size=9),
            "G": None,
            "D": small,
            "G_ema": network(state_dict, source=source, **{"z_dim": 6, "c_dim": 0, "img_channels": 3, **state}),
            "augment_pipe": None,
        }
        return pickle.dumps(held, protocol)


def pti_file(state_dict: Mapping[str, Tensor], path: Path, *, legacy: bool = False, **state: Any) -> None:
    """PTI's tuned generator: `torch.save` of the whole module."""
    with nvidia_names():
        torch.save(network(state_dict, **state), path, _use_new_zipfile_serialization=not legacy)


def saved(value: Any, *, legacy: bool = False) -> bytes:
    """The bytes that `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()
