"""A generator that draws on the features of one photo: what StyleFeatureEditor's inversions are drawn by.

Paper: Bobkov et al. 2024, arXiv:2406.10601 (section 3.3, figure 3). Own code. An edit moves codes; here the features
follow: the change that the same move makes to the generator's own features, at the code of an editing encoder, goes
through the Feature Editor. Whoever draws need not know: a code goes in, a picture comes out.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.generator import Generator, SynthesisNetwork
from stylegan_inversion.models.layers import NoiseMode
from stylegan_inversion.models.sfe_encoder import FeatureEditor, StyleFeatureEncoder

PHOTO = ("features", "w_inverted", "w_edit", "keep")  # what a generator holds of its photo


class FeatureSynthesis(SynthesisNetwork):
    """Map w+ to an image, on the features of one photo. See `FeatureGenerator`."""

    features: Tensor
    w_inverted: Tensor
    w_edit: Tensor | None
    keep: Tensor

    def __init__(
        self, synthesis: SynthesisNetwork, editor: FeatureEditor, photo: dict[str, Any], coarse: Tensor | None
    ) -> None:
        _share(self, synthesis, "_modules", "_buffers")
        self.editor = editor
        self._coarse = coarse
        self._find_w_edit = None if isinstance(photo["w_edit"], Tensor) else photo["w_edit"]
        for name in PHOTO:
            self.register_buffer(name, photo[name] if isinstance(photo[name], Tensor) else None)

    def complete(self) -> None:
        """Find the code that only edits need, if it has not been found: whoever copies or saves this calls it, too."""
        if (find := self._find_w_edit) is not None:  # another thread may be at it, too
            self.w_edit, self._find_w_edit = find(), None  # the encoder is free to go

    def __getstate__(self) -> dict[str, Any]:
        """Take the code along, and not the encoder that finds it."""
        self.complete()
        return super().__getstate__()

    def _save_to_state_dict(self, *args: Any) -> None:
        self.complete()
        super()._save_to_state_dict(*args)

    def forward(  # type: ignore[override]
        self,
        w_plus: Float[Tensor, "batch num_ws w_dim"],
        *,
        noise_mode: NoiseMode = "const",
        noise: Sequence[Tensor | None] | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "batch 3 resolution resolution"]:
        """Draw images, as `SynthesisNetwork` does; the features follow from `w_inverted` to `w_plus` and the styles."""
        # the shared weights may have moved, with the pipeline
        features, move = self.features.to(self.const), w_plus - self.w_inverted.to(self.const)
        features, side = features.expand(len(w_plus), -1, -1, -1), features.shape[-1]
        change, coarse = torch.zeros_like(features), self._coarse
        self._coarse = None  # of the moment of the inversion: later draws may be by other weights or noise
        if move.any() or self.style_offset is not None:
            self.complete()
            w_edit, keep = (getattr(self, name).to(self.const) for name in ("w_edit", "keep"))
            before, after = self.features_at(side, w_edit), self.features_at(side, w_edit + move, self.style_offset)
            change, coarse = (before[0] - after[0]) * (1 - keep), None
        if torch.is_grad_enabled() or noise is not None or noise_mode != "const" or len(w_plus) > 1:
            coarse = None
        if coarse is not None and (coarse.device, coarse.dtype) != (self.const.device, self.const.dtype):
            coarse = None
        return super().forward(
            w_plus, noise_mode=noise_mode, noise=noise, rng=rng, features=self.editor(features, change), coarse=coarse
        )


class FeatureGenerator(Generator):
    """The generator of one photo: it shares all weights with the one it is made of, and moves with it.

    Args:
        generator: Draws. It stays as it is.
        editor: Moves the features along with an edit.
        features: The photo's, (1, channels, side, side): they replace the generator's own after the block of that side.
        w_inverted: The photo's code, (1, num_ws, w_dim), to which the features belong.
        w_edit: Its code by an encoder made for edits, (1, num_ws, w_dim): the change of an edit is measured there. Or a
            function that finds it, which the first edit calls.
        keep: What edits leave alone, in [0, 1], (1, 1, side, side). `None` keeps nothing.
        coarse: The picture that the generator has drawn so far at `w_inverted`, (1, 3, side, side), if it is at hand:
            it saves the first draw a part of its time, before which the weights must not change.

    Attributes:
        base: The generator that it is made of.
    """

    synthesis: FeatureSynthesis

    def __init__(
        self,
        generator: Generator,
        editor: FeatureEditor,
        *,
        features: Float[Tensor, "1 channels side side"],
        w_inverted: Float[Tensor, "1 num_ws w_dim"],
        w_edit: Float[Tensor, "1 num_ws w_dim"] | Callable[[], Tensor],
        keep: Float[Tensor, "1 1 side side"] | None = None,
        coarse: Float[Tensor, "1 3 side side"] | None = None,
    ) -> None:
        _share(self, generator, "_modules")
        sizes, side, channels = generator.config, features.shape[-1], editor.config.channels
        photo: dict[str, Any] = {"features": features, "w_inverted": w_inverted, "w_edit": w_edit}
        photo["keep"] = features.new_zeros(1, 1, side, side) if keep is None else keep
        codes = (1, sizes.num_ws, sizes.w_dim)
        shapes = dict(zip(PHOTO, ((1, channels, side, side), codes, codes, (1, 1, side, side))))
        fits = side in sizes.resolutions[:-1] and channels == sizes.channels(side)
        found = {name: tuple(tensor.shape) for name, tensor in photo.items() if isinstance(tensor, Tensor)}
        if not fits or any(shape != shapes[name] for name, shape in found.items()):
            raise ValueError(f"The features do not fit the generator or the editor: expected {shapes}, got {found}.")
        self._base = (generator,)  # not a part: its weights are here already
        self.synthesis = FeatureSynthesis(storage.uncompiled(generator.synthesis), editor, photo, coarse)

    @property
    def base(self) -> Generator:
        """The generator that it is made of."""
        return self._base[0]

    @property
    def photo(self) -> dict[str, Tensor]:
        """What it holds of its photo, by the names of `PHOTO`."""
        self.synthesis.complete()
        return {name: getattr(self.synthesis, name) for name in PHOTO}

    def keeping(self, mask: Float[Tensor, "1 1 height width"]) -> Generator:
        """The same generator, whose edits leave a part of the photo alone: where the mask is 1."""
        side = self.synthesis.features.shape[-1]
        small = nn.functional.interpolate(mask.to(self.w_avg), size=side, mode="bilinear", align_corners=False)
        kept = FeatureGenerator(self.base, self.synthesis.editor, **{**self.photo, "keep": small})
        return kept.with_styles(self.style_offset)


def editor_among(networks: Iterable[nn.Module]) -> FeatureEditor:
    """Find the Feature Editor among the networks of a pipeline. Raises `ModelNotFoundError` if it is not there."""
    for network in map(storage.uncompiled, networks):
        if isinstance(network, StyleFeatureEncoder):
            return network.editor
    raise ModelNotFoundError(
        "Its Feature Editor, which moves the features of the photo, is not in `networks`, those of its pipeline."
    )


def _share(module: nn.Module, other: nn.Module, *own: str) -> None:
    """Give a new module everything of another, which moves with it; the containers named are its own."""
    parts: dict[str, Any] = vars(other)
    vars(module).update({name: copy.copy(part) if name in own else part for name, part in parts.items()})
    vars(module).pop("_compiled_call_impl", None)  # of `Module.compile`: it would call the other one's `forward`
