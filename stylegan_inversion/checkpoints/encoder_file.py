"""The checkpoint file of pSp, e4e or ReStyle -> encoder, generator and latent discriminator of ours.

Formats: eladrich/pixel2style2pixel and omertov/encoder4editing (MIT): `state_dict` (`encoder.*`, `decoder.*`), `opts`,
`latent_avg`. Sizes come from the tensors, so older files without `learn_in_w` or `output_size` are read the same way.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from stylegan_inversion.checkpoints import encoder as convert_encoder
from stylegan_inversion.checkpoints.network_file import generator_part, left_out, plain_names, refuse_others, tensors_of
from stylegan_inversion.checkpoints.part import Part, SingleFile, StateDict
from stylegan_inversion.checkpoints.restyle import is_restyle, restyle_encoder_from_official
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminator
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, WEncoder
from stylegan_inversion.models.restyle_encoder import ReStyleEncoder

EncoderKind = Literal["psp", "e4e", "restyle"]
_ENCODERS: dict[str, EncoderKind] = {
    "GradualStyleEncoder": "psp",
    "BackboneEncoderUsingLastLayerIntoW": "psp",
    "Encoder4Editing": "e4e",
    "SingleStyleCodeEncoder": "e4e",
}
_AVERAGE_SAMPLES = {"psp": 100_000, "e4e": 10_000, "restyle": 10_000}  # what pSp's and e4e's training average over


def read_encoder_checkpoint(
    checkpoint: Mapping[str, Any], state_dict: StateDict, asked: EncoderKind | None
) -> SingleFile:
    """Convert the checkpoint of a pSp, an e4e or a ReStyle encoder.

    Args:
        checkpoint: What the file holds.
        state_dict: Its tensors, with the prefixes `encoder.` and `decoder.`.
        asked: Which encoder is expected; `None` takes what `opts` say.

    Raises:
        CheckpointError: If it is another encoder, another than `asked`, does not say which it is, or its parts do not
            fit each other.
    """
    found = checkpoint.get("opts")
    options: dict[str, Any] = found if isinstance(found, dict) else {}
    refuse_others(state_dict)
    others = sorted({key.split(".")[0] for key in state_dict} - {"encoder", "decoder", "latent_avg"})
    encoder, decoder = convert_encoder.split_checkpoint(state_dict)
    into_w_plus = any(key.startswith("styles.") for key in encoder)
    restyle = is_restyle(encoder)
    kind = _check_asked("restyle", asked) if restyle else _encoder_kind(options, asked)
    parts: dict[str, Part] = {}
    notes: list[str] = []
    stored = checkpoint.get("latent_avg", state_dict.get("latent_avg"))
    average = stored if isinstance(stored, Tensor) else None
    if decoder:
        own = checkpoint.get("w_avg", average)  # `w_avg`: only in files that this package wrote
        parts["generator"], notes = generator_part(decoder, own, samples=_AVERAGE_SAMPLES[kind])
        average = parts["generator"].state_dict["w_avg"] if average is None else average
    else:
        notes.append("The file has no generator (`decoder.`).")
    if options.get("start_from_latent_avg") is False and not restyle:  # ReStyle always begins there
        average = None
    elif average is None:
        raise CheckpointError("It has neither an average w (`latent_avg`) nor a generator to compute it from.")
    if restyle and average is not None:
        sizes, tensors = restyle_encoder_from_official(encoder, options=options, latent_avg=average)
        parts["encoder"] = Part(ReStyleEncoder, sizes, tensors)
        side = sizes.output_resolution
    elif into_w_plus:
        config, converted = convert_encoder.pyramid_encoder_from_official(encoder, latent_avg=average)
        parts["encoder"] = Part(GradualStyleEncoder if kind == "psp" else Encoder4Editing, config, converted)
        side = config.output_resolution
    else:
        side = parts["generator"].config.resolution if decoder else _output_size(options, notes)
        into_w = convert_encoder.w_encoder_from_official(encoder, output_resolution=side, latent_avg=average)
        parts["encoder"] = Part(WEncoder, *into_w)
    if decoder and parts["generator"].config.resolution != side:
        drawn = parts["generator"].config.resolution
        raise CheckpointError(f"Its encoder is for a generator of {side} px, but its generator draws {drawn} px.")
    if discriminator := tensors_of(checkpoint.get("discriminator_state_dict")):
        try:
            converted_d = convert_encoder.latent_discriminator_from_official(plain_names(discriminator))
            parts["latent_discriminator"] = Part(LatentDiscriminator, *converted_d)
        except CheckpointError:
            others.append("discriminator_state_dict")
    notes += left_out(others)
    return SingleFile(kind, parts, options=options, notes=tuple(notes))


def _encoder_kind(options: Mapping[str, Any], asked: EncoderKind | None) -> EncoderKind:
    written = options.get("encoder_type")
    kind = _ENCODERS.get(str(written))
    if kind is None and written is not None:
        raise CheckpointError(f"Its encoder is a {str(written)[:100]!r}; known are {', '.join(_ENCODERS)}.")
    if kind is None and "stylegan_size" in options:
        kind = "e4e"
    elif "output_size" in options or "learn_in_w" in options:
        kind = kind or "psp"
    if kind is not None and written != "BackboneEncoderUsingLastLayerIntoW":
        _check_asked(kind, asked)
    if asked == "restyle":
        raise CheckpointError("It is a checkpoint of pSp or e4e, not of restyle: its encoder reads three channels.")
    if asked is None and kind is None:
        raise CheckpointError(
            "It holds an encoder of pSp or of e4e, whose tensors have the same names, and no `opts` that tell which: "
            'say `encoder="psp"` or `encoder="e4e"`.'
        )
    return asked or kind or "psp"


def _check_asked(kind: EncoderKind, asked: EncoderKind | None) -> EncoderKind:
    if asked not in (None, kind):
        raise CheckpointError(f"It is a checkpoint of {kind}, not of {asked}: use the pipeline of {kind}.")
    return kind


def _output_size(options: Mapping[str, Any], notes: list[str]) -> int:
    size = options.get("output_size", options.get("stylegan_size"))
    if size is None:
        notes.append("The file does not say the side of the generator's images; 1024, the papers', was taken.")
    return 1024 if size is None else int(size)
