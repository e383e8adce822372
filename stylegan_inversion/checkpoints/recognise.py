"""One foreign file -> which networks and directions it holds, each as (config, state dict) of ours.

What a file is, its tensors tell, never its name; a network may lie at any depth and under any prefix. Only where two
networks have the same tensors (pSp's encoder and e4e's) the settings that the file carries (`opts`) decide, or the
caller.
"""

import dataclasses
import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.checkpoints import encoder as encoders
from stylegan_inversion.checkpoints import generator as generators
from stylegan_inversion.checkpoints.direction import components_from_ganspace, vector_from_official
from stylegan_inversion.checkpoints.read import read_checkpoint
from stylegan_inversion.checkpoints.unpickle import PickledModule
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.ganspace import PrincipalComponents
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import Discriminator, LatentDiscriminator
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.irse import ArcFace
from stylegan_inversion.models.resnet import ResNet
from stylegan_inversion.preprocessing.domain import FACES, Domain, domain_named
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource, Source, photo_task

StateDict = dict[str, Tensor]

_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # of odd shapes and types
_WRAPPERS = {"module", "_orig_mod"}  # of `DataParallel` and `torch.compile`
_AVERAGED = re.compile(r"(^|[^a-zA-Z])(ema|EMA)([^a-zA-Z]|$)|running")
_KNOWN = (
    "Supported are unconditional StyleGAN2 generators of rosinality and NVIDIA, checkpoints of pSp, e4e, ReStyle, "
    "StyleFeatureEditor and PTI, IR-SE50, MoCo, and the directions of InterFaceGAN and GANSpace."
)
_REFUSED = {  # how the names of tensors begin -> what has them
    r"synthesis\.(input\.|L\d+_)": "a StyleGAN3 generator",
    r"(g_mapping|g_synthesis|(generator\.)?progression|step)\.": "a StyleGAN1 generator",
    r"(backbone\.synthesis|superresolution|renderer)\.": "a 3D generator",
    r"mapping\.embed\.": "a conditional generator, which takes labels",
    r"(synthesis\.blocks|pyramid)\.": "a file of this package, whose folder `from_pretrained` reads",
    r"hypernet\.": "a checkpoint of HyperStyle",
    r"(encoder|inverter)\.(fs_backbone|fuser)\.": "a checkpoint of StyleFeatureEditor without its editor",
    r"(stylegan_decoder\.)?(style_mlp|style_conv1|style_convs|constant_input)\.": "a StyleGAN2 of BasicSR or GFPGAN",
    r"(generator(_ema)?\.)?style_mapping\.": "a generator of MMGeneration or MMagic",
    r"(model\.diffusion_model|first_stage_model|unet|down_blocks|transformer_blocks|double_blocks)\.|.*lora_"
    r"(A|B|up|down|te|unet)": "a diffusion model or a LoRA of one, not a GAN",
}


@dataclass(frozen=True, eq=False)
class Part:
    """A network of a file, checked against its class. Its tensors may be views of the file; `build` copies them."""

    module_class: type[nn.Module]
    config: Any
    state_dict: StateDict

    def __post_init__(self) -> None:
        """Check names, shapes and values without making the network."""
        with torch.device("meta"):
            storage.check_fit(self.module_class(self.config), self.state_dict, source="It")
        for key, tensor in self.state_dict.items():
            # one pass without a copy, unlike `isfinite`: NaN is both, infinity is one of the two
            extremes = tensor.aminmax() if tensor.is_floating_point() and tensor.numel() else ()
            if not all(torch.isfinite(extreme) for extreme in extremes):
                raise CheckpointError(f"Not a sound {self.module_class.__name__}: {key} holds NaN or infinity.")

    def build(self) -> nn.Module:
        """Build the network: in eval mode, frozen, float32."""
        module = storage.new_module(self.module_class, self.config)
        module.load_state_dict(self.state_dict)
        return module.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class SingleFile:
    """What a foreign file is."""

    kind: str  # a key of `ENCODERS`, rosinality, nvidia, pti, stylegan3-editing, arcface, moco, direction or ganspace
    # encoder, generator, (latent_)discriminator, identity, moco, or the folder of a second encoder
    parts: dict[str, Part] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)  # directions by name; one without a name is "direction"
    directions: dict[str, Direction] = field(default_factory=dict)  # the papers', for its generator: see `find.py`
    components: PrincipalComponents | None = None  # GANSpace's
    options: dict[str, Any] = field(default_factory=dict)  # the file's `opts`, as plain values
    domain: Domain = FACES  # what the model takes, by the data set that `opts` name
    dataset: str | None = None  # what its generator draws, as the catalogue names it: "ffhq-1024"; see `find.py`
    task: str = "inversion"  # what becomes of photos, one of `PHOTO_TASKS`, by the same name
    notes: tuple[str, ...] = ()  # what the file lacks and how that was made up for, one sentence each


def source_of(encoder: nn.Module | Part, task: str) -> Source:
    """Tell what an encoder of the papers reads, by its channels: photos for a task, sketches, or label maps."""
    channels = cast(Any, encoder).config.in_channels
    if channels == 3:
        return PhotoSource(task)
    return SketchSource() if channels == 1 else LabelSource(channels)


class _Found(NamedTuple):
    """A state dict in a checkpoint: the key it lies under, its tensors by plain names, and what lies beside it."""

    name: str
    tensors: StateDict
    beside: Mapping[Any, Any]


def read_single_file(path: Path, *, encoder: str | None = None) -> SingleFile:
    """Read a foreign checkpoint without running any of it, and convert what it holds.

    Args:
        path: A `.pt`, `.pth`, `.pkl`, `.npy` or `.safetensors`.
        encoder: Which encoder is expected, a key of `ENCODERS`. `None` takes what the file says.

    Raises:
        CheckpointError: If it cannot be read, is none of the kinds, is not supported, or is another encoder than
            `encoder`. The message begins with the path.
    """
    checkpoint = read_checkpoint(path)
    try:
        return recognise(checkpoint, encoder)
    except (CheckpointError, *_UNFIT) as e:
        reason = str(e)
        if isinstance(e, KeyError):
            reason = f"Not a whole checkpoint of this field: tensor {reason[:100]} is missing."
        elif not isinstance(e, CheckpointError):
            reason = "Its tensors have shapes or types that fit no network of the field: " + reason.split("\n")[0][:200]
        raise CheckpointError(f"{path}: {reason}") from e


def recognise(checkpoint: Any, encoder: str | None = None) -> SingleFile:
    """Convert what `read_checkpoint` gave.

    Raises:
        CheckpointError: If it is not of the field, is not supported, or is another encoder than `encoder`.
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError: If its tensors have shapes or
            types that fit no network; `read_single_file` turns them into a `CheckpointError`.
    """
    if isinstance(checkpoint, PickledModule):
        return _pickled_generator("pti", checkpoint)
    if isinstance(checkpoint, Tensor):
        return SingleFile("direction", vectors={"direction": vector_from_official(checkpoint)})
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"Not a checkpoint of this field: it holds a {type(checkpoint).__name__}.")
    for name in ("G_ema", "G", *checkpoint):
        value = checkpoint.get(name)
        if isinstance(value, PickledModule) and (name in ("G_ema", "G") or value.class_name == "Generator"):
            return _pickled_generator("nvidia", value)
    if {"mean", "comp", "std"} <= checkpoint.keys():
        return SingleFile("ganspace", components=components_from_ganspace(checkpoint))
    found = _find_state_dicts(checkpoint)
    for each in found:
        if any(key.startswith("encoder_q.") for key in each.tensors):
            return SingleFile("moco", {"moco": Part(ResNet, *encoders.moco_from_official(each.tensors))})
        if "output_layer.3.weight" in each.tensors:
            return SingleFile("arcface", {"identity": Part(ArcFace, *encoders.arcface_from_official(each.tensors))})
        if {"encoder.conv.weight", "inverter.fs_backbone.styles.0.weight"} <= each.tensors.keys():
            return _style_feature_file(each, encoder)
        whole = any(key.startswith("encoder.") for key in each.tensors)
        cut = (each.tensors, []) if whole else _cut_out(each.tensors, "encoder.input_layer.0.weight")
        if cut is not None:
            return _encoder_file(each.beside, *cut, encoder)
    for each in found:
        _refuse_others(each.tensors)
        if (cut := _cut_out(each.tensors, *generators.MARKS)) is not None:
            return _generator_file(each, *cut, found)
    state_dict = found[0].tensors
    if all(tensor.ndim <= 3 and tensor.shape[-1:] for tensor in state_dict.values()):
        return SingleFile("direction", vectors={key: vector_from_official(v) for key, v in state_dict.items()})
    raise CheckpointError(f"Not a checkpoint of this field: it holds {sorted(map(str, checkpoint))[:8]}. {_KNOWN}")


def _find_state_dicts(checkpoint: Mapping[Any, Any]) -> list[_Found]:
    """Find the tensors at the top of a checkpoint and in the dicts inside, two levels down, but not an optimiser's.

    Those that are called an average (`g_ema`) come first.
    """
    found: list[_Found] = []

    def look(value: dict[Any, Any], name: str, outer: ChainMap[Any, Any], depth: int) -> None:
        tensors = {key: tensor for key, tensor in value.items() if isinstance(key, str) and isinstance(tensor, Tensor)}
        if tensors:
            found.append(_Found(name, _plain_names(tensors), outer))
        for key, inner in value.items():
            if isinstance(key, str) and isinstance(inner, dict) and depth and "optim" not in key.lower():
                look(inner, key, outer.new_child(value), depth - 1)

    look(dict(checkpoint), "", ChainMap(dict(checkpoint)), 2)
    if not found:
        held = ", ".join([str(key)[:50] for key in checkpoint][:8]) or "nothing"
        raise CheckpointError(f"Not a checkpoint of this field: there are no tensors in it, only {held}.")
    return sorted(found, key=lambda each: not _AVERAGED.search(each.name))


def _plain_names(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Leave out `module.` (of `DataParallel`) and `_orig_mod.` (of `torch.compile`), wherever they stand in a name."""
    plain: StateDict = {}
    for key, tensor in state_dict.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in plain:
            raise CheckpointError(f"It holds the tensor {name!r} twice, also as {key!r}. Save one network's tensors.")
        plain[name] = tensor
    return plain


def _cut_out(state_dict: Mapping[str, Tensor], *marks: str) -> tuple[StateDict, list[str]] | None:
    """Cut the network that has one of the tensors `marks` out of a state dict, whatever its names begin with.

    Of several networks it takes one that is called an average; `None` if there is none. It also returns the first parts
    of the names of all other tensors.
    """
    prefixes = [key.removesuffix(mark) for key in state_dict for mark in marks if f".{key}".endswith(f".{mark}")]
    if not prefixes:
        return None
    prefix = min(prefixes, key=lambda prefix: not _AVERAGED.search(prefix))
    others = {key.split(".")[0] for key in state_dict if not key.startswith(prefix)}
    return storage.under(state_dict, prefix), sorted(others)


def _left_out(names: list[str]) -> list[str]:
    named = ", ".join(f"`{name[:50]}`" for name in names[:5])
    return [f"The file also holds {named}, which was left out."] if names else []


def _refuse_others(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse, by name, what is not StyleGAN2 or one of its encoders, and this package's own files."""
    for key in state_dict:
        for pattern, what in _REFUSED.items():
            if re.match(pattern, key):
                raise CheckpointError(f"It is {what} (tensor {key!r:.80}). {_KNOWN}")


def _generator_part(
    state_dict: StateDict, latent_avg: Any, *, samples: int = 10_000, lr_multiplier: float | None = None
) -> tuple[Part, list[str]]:
    """Convert a generator in either format; an average w and noise that the file lacks are made up for."""
    _refuse_others(state_dict)
    average = latent_avg if isinstance(latent_avg, Tensor) else None
    config, converted = generators.generator_from_official(state_dict, latent_avg=average)
    if lr_multiplier is not None:
        config = dataclasses.replace(config, mapping_lr_multiplier=lr_multiplier)
    notes = []
    if not generators.has_noise(state_dict):
        what = "it was drawn from a seed, so pictures differ from others in grain."
        notes.append(f"The file has no constant noise; {what}")
    if average is None and "mapping.w_avg" not in state_dict:
        converted["w_avg"] = generators.average_w(config, converted, samples=samples)
        notes.append(f"The file has no average w; it was computed from the mapping network, over {samples} samples.")
    return Part(Generator, config, converted), notes


def _pickled_generator(kind: str, module: PickledModule) -> SingleFile:
    """Convert NVIDIA's generator, pickled whole; what it keeps as attributes, not tensors, is checked here."""
    if module.class_name != "Generator":
        raise CheckpointError(f"Not a generator: a pickled {module.class_name}.")
    lr_multiplier, clamps = None, False
    for name, layer in module.modules():
        if (activation := layer.state.get("activation", "linear")) not in ("linear", "lrelu"):
            raise CheckpointError(f"Its layer {name[:-1]!r} has the activation {str(activation)[:50]!r}, not 'lrelu'.")
        if name == "mapping.fc0." and isinstance(gain := layer.state.get("bias_gain"), float) and 0 < gain <= 1:
            lr_multiplier = gain
        clamps = clamps or layer.state.get("conv_clamp") is not None
    part, notes = _generator_part(_plain_names(module.state_dict()), None, lr_multiplier=lr_multiplier)
    if clamps:
        notes.insert(0, "Its layers clamp their outputs (`conv_clamp`, for half precision); ours do not, in float32.")
    return SingleFile(kind, {"generator": part}, notes=tuple(notes))


def _generator_file(each: _Found, tensors: StateDict, others: list[str], found: list[_Found]) -> SingleFile:
    """Convert a generator, and rosinality's discriminator if there is one; a note says what else was left out."""
    part, notes = _generator_part(tensors, tensors.pop("latent_avg", each.beside.get("latent_avg")))
    parts = {"generator": part}
    if each.name in ("g", "G"):
        name = each.name
        notes.append(f"The file has no `{name}_ema`, the averaged generator; `{name}`, the one in training, was taken.")
    for other in found:
        is_network = other.name and not other.tensors.keys() <= {"latent_avg"}
        if other is each or not is_network or _cut_out(other.tensors, *generators.MARKS) is not None:
            continue
        try:
            parts["discriminator"] = Part(Discriminator, *generators.discriminator_from_rosinality(other.tensors))
        except (CheckpointError, *_UNFIT):
            others.append(other.name)
    kind = "rosinality" if "conv1.conv.weight" in tensors else "stylegan3-editing"
    return SingleFile(kind, parts, notes=(*notes, *_left_out(others)))


def _encoder_file(
    checkpoint: Mapping[Any, Any], state_dict: StateDict, outside: list[str], asked: str | None
) -> SingleFile:
    """Convert a checkpoint of pSp, e4e or ReStyle: `encoder.*`, `decoder.*`, `opts` and `latent_avg` beside them.

    Sizes come from the tensors, so older files without `learn_in_w` or `output_size` are read the same way.
    """
    _refuse_others(state_dict)
    options = checkpoint["opts"] if isinstance(checkpoint.get("opts"), dict) else {}
    encoder, decoder = (storage.under(state_dict, top) for top in ("encoder.", "decoder."))
    tops = {key.split(".")[0] for key in state_dict}
    others = [*outside, *sorted(tops - {"encoder", "decoder", "latent_avg"})]
    kind = _encoder_kind(encoders.config_class(encoder), options, asked)
    row, parts, notes = ENCODERS[kind], dict[str, Part](), list[str]()
    stored = checkpoint.get("latent_avg", state_dict.get("latent_avg"))
    average = stored if isinstance(stored, Tensor) else None
    if decoder:
        own = checkpoint.get("w_avg", average)  # `w_avg`: only in files that this package wrote
        parts["generator"], notes = _generator_part(decoder, own, samples=row.average_samples)
        average = parts["generator"].state_dict["w_avg"] if average is None else average
    else:
        notes.append("The file has no generator (`decoder.`).")
    if options.get("start_from_latent_avg") is False and not row.from_average:
        average = None
    elif average is None:
        raise CheckpointError("It has neither an average w (`latent_avg`) nor a generator to compute it from.")
    if row.progressive and "generator" in parts:
        encoder, average, cut = encoders.without_last_styles(encoder, average, parts["generator"].config.num_ws)
        notes += [f"Its encoder gives {cut} styles more than the generator takes: they were left out."] * bool(cut)
    if "linear.weight" in encoder and not any(key.startswith("styles.") for key in encoder):
        notes.append("Its encoder into W was left out: no pipeline takes it.")
    else:
        converted = encoders.encoder_from_official(kind, encoder, latent_avg=average, options=options)
        parts["encoder"] = Part(row.network, *converted)
    if len(parts) == 2 and parts["generator"].config.resolution != parts["encoder"].config.output_resolution:
        made, drawn = parts["encoder"].config.output_resolution, parts["generator"].config.resolution
        raise CheckpointError(f"Its encoder is for a generator of {made} px, but its generator draws {drawn} px.")
    if discriminator := checkpoint.get("discriminator_state_dict"):
        try:
            judge = encoders.latent_discriminator_from_official(_plain_names(discriminator))
            parts["latent_discriminator"] = Part(LatentDiscriminator, *judge)
        except (CheckpointError, *_UNFIT):
            others.append("discriminator_state_dict")
    data = options.get("dataset_type")
    told: dict[str, Any] = {"options": options, "domain": domain_named(data), "task": photo_task(data)}
    return SingleFile(kind, parts, **told, notes=(*notes, *_left_out(others)))


def _style_feature_file(each: _Found, asked: str | None) -> SingleFile:
    """Convert StyleFeatureEditor's file: `encoder.*` is the Feature Editor, `inverter.*` the rest.

    The training files also hold the generator and e4e's encoder, `decoder.*` and `e4e_encoder.*`.
    """
    if asked not in (None, "sfe"):
        raise CheckpointError(f"It is a checkpoint of sfe, not of {asked}: use the pipeline of sfe.")
    tops: dict[str, StateDict] = {}
    for key, tensor in each.tensors.items():
        top = key.partition(".")[0]
        tops.setdefault(top, {})[key if top in ("encoder", "inverter") else key.removeprefix(f"{top}.")] = tensor
    official = {**tops.pop("encoder"), **tops.pop("inverter")}
    parts = {"encoder": Part(ENCODERS["sfe"].network, *encoders.encoder_from_official("sfe", official))}
    notes, average = list[str](), each.beside.get("latent_avg")
    if "decoder" in tops and "e4e_encoder" in tops:
        parts["generator"], notes = _generator_part(tops.pop("decoder"), average)
        own, second = each.beside.get("e4e_latent_avg", parts["generator"].state_dict["w_avg"]), ENCODERS["e4e"]
        converted = encoders.encoder_from_official("e4e", tops.pop("e4e_encoder"), latent_avg=own)
        parts[second.folder] = Part(second.network, *converted)
    return SingleFile("sfe", parts, notes=(*notes, *_left_out(sorted(tops))))


def _encoder_kind(config: type[Any], options: Mapping[str, Any], asked: str | None) -> str:
    """Tell which of `ENCODERS` with a config it is, by the settings in the file or else by what the caller asks for."""
    fitting = {name: row for name, row in ENCODERS.items() if row.config is config}
    types, written = [each for row in fitting.values() for each in row.types], options.get("encoder_type")
    if written is not None and str(written) not in types:
        raise CheckpointError(f"Its encoder is a {str(written)[:100]!r}; known are {', '.join(types)}.")
    told = [name for name, row in fitting.items() if str(written) in row.types]
    if not told:
        having = {name: row for name, row in fitting.items() if options.keys() & row.options}
        told = [name for name in having if name not in {row.grew_from for row in having.values()}] or list(fitting)
    if asked not in (None, *told):
        names = " or ".join(told)
        raise CheckpointError(f"It is a checkpoint of {names}, not of {asked}: use the pipeline of {names}.")
    if asked is None and len(told) > 1:
        ways = " or ".join(f'`encoder="{name}"`' for name in told)
        raise CheckpointError(
            f"It holds an encoder of {' or of '.join(told)}, whose tensors have the same names, and no `opts` that "
            f"tell which: say {ways}."
        )
    return asked or told[0]
