"""The training of StyleFeatureEditor: first its inverter, backbone and Fuser, then its Feature Editor.

Paper: Bobkov et al. 2024, "The Devil is in the Details", arXiv:2406.10601 (sections 3.2 and 3.3). Original code:
ControlGenAI/StyleFeatureEditor (MIT; not used). Own code. Departures: both feature networks start as a sum of their two
maps, the Feature Editor's second one negative, so that a model edits before it is trained for it; the edits are those
of the model's directions, each at a strength drawn from its range; the discriminator judges pictures of the side at
which they are compared, and begins new unless the model brings one; noise is constant, as the features hold it.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stylegan_inversion import latents, storage
from stylegan_inversion.editing.directions import Direction, load_directions
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.losses.adversarial import discriminator_loss, generator_loss
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.sfe_encoder import FeatureEditor, StyleFeatureEncoder
from stylegan_inversion.pipelines.sfe import SFEPipeline
from stylegan_inversion.training.e4e import Adversary
from stylegan_inversion.training.encoder import EncoderLearner, Pass
from stylegan_inversion.training.objective import Terms

Batches = Sequence[dict[str, Tensor]]
Drawn = tuple[Tensor, Tensor, Tensor]  # inversions, edits, and what the edits should be, (B, 3, R', R') each


class SFELearner(EncoderLearner):
    """`EncoderLearner` for StyleFeatureEditor, of which one part is trained and the other stays as it is."""

    encoder: StyleFeatureEncoder

    def prepare(self) -> None:
        """Load e4e and the edits, choose what is trained, and make the discriminator."""
        config = self.config
        refused = {
            "task": (config.task, "inversion"),
            "synthetic_batch_size": (config.synthetic_batch_size, 0),
            "train_decoder": (config.train_decoder, False),
            "encoder.backbone": (config.encoder.backbone, None),
        }
        for name, (value, only) in refused.items():
            if value != only:
                raise ValueError(f"`{name}` is {value}, with which --method sfe cannot train: it must be {only}.")
        if config.sfe.part == "editor" and config.init is None:
            raise ValueError("`sfe.part` is editor, which follows a trained inverter: give its model as `init`.")
        kind = ENCODERS["e4e"]
        if not (folder := self.model_folder / kind.folder).is_dir():
            raise ModelNotFoundError(
                f"`model`: {config.model!r} holds no {kind.network.__name__} (folder {kind.folder!r}), whose edits "
                "StyleFeatureEditor follows. Train e4e for its generator first, and give that model."
            )
        self.e4e: Any = storage.load_module(kind.network, kind.config, folder, device=self.accelerator.device)
        SFEPipeline(self.generator, self.encoder, e4e=self.e4e)  # refuses what does not fit, and freezes
        self.input_resolution = self.generator.config.resolution  # the encoder shrinks pictures itself
        if config.init is None:
            add_maps(self.encoder.fuser, 1.0)
            add_maps(self.encoder.editor, -1.0)
        self.edits = self._load_edits() if config.sfe.part == "editor" else []
        for part in [self.encoder.editor] if self.edits else [self.encoder.backbone, self.encoder.fuser]:
            part.train().requires_grad_(True)
        self.adversary = self._make_adversary() if "adversarial" in self.weights else None

    def _load_edits(self) -> list[Direction]:
        folder = self.model_folder / "directions"
        found = load_directions(folder).values() if folder.is_dir() else ()
        edits = [each.to(self.accelerator.device) for each in found if each.space == "w" and each.strength_range]
        if not edits:
            raise ValueError(
                f"`model`: {self.config.model!r} has no direction in W with a range of strengths, from whose edits the "
                "editor learns. `stylegan-inversion find-directions` finds some."
            )
        return edits

    def _make_adversary(self) -> Adversary:
        side, sizes, folder = self.output_resolution, self.generator.config, self.model_folder / "discriminator"
        if folder.is_dir() and storage.read_config(folder).get("resolution") == side:
            network = storage.load_module(Discriminator, DiscriminatorConfig, folder)
        else:
            network = Discriminator(DiscriminatorConfig(side, sizes.channel_base, sizes.channel_max))
        return Adversary(network, self.config.sfe, device=self.accelerator.device)

    def _losses(
        self, y: Tensor | None, x: Tensor, true_w: Tensor, turn: int, stage: int, seen: Pass | None
    ) -> tuple[Tensor, Terms, Tensor, Tensor | None]:
        """Loss, terms, and the pictures that the discriminator judges. See `EncoderLearner`."""
        step, y = turn // self.config.accumulation, cast(Tensor, y)
        if self.edits:
            sources = self.draws.sources("edit", turn, len(x))
            drawn, edited, target = self._draw_edits(x, self.encoder, self.generator, sources)
            terms, second, name = self.objective.images(drawn, y), self.objective.images(edited, target), "edited"
        else:
            drawn, terms, second, name = *self._invert(x, y, step), "code"
        if self.adversary is not None and step >= self.config.sfe.adversarial_from:
            terms["adversarial"] = generator_loss(self.adversary.network(with_bars(drawn)))
        loss = self.objective.total(terms) + self.objective.total(second)
        return loss, terms | {f"{key} ({name})": term for key, term in second.items()}, drawn, None

    def _invert(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Terms, Terms]:
        """Invert pictures: what is drawn on the features and then by the code alone, and the terms of either."""
        codes, predicted = self.encoder.backbone(self.encoder.shrink(x))
        w_plus = codes + self.generator.w_avg
        own, _ = self.generator.synthesis.features_at(predicted.shape[-1], w_plus)
        features = self.encoder.fuser(predicted, own)
        mixed = torch.lerp(own, features, min(1.0, (step + 1) / (self.config.sfe.blend_steps + 1)))
        maps = torch.cat([mixed, own])
        drawn = self.resize(self.generator.synthesis(w_plus.repeat(2, 1, 1), features=maps))
        terms = self.objective.images(drawn[: len(y)], y)
        terms |= self.objective.codes(w_plus, w_avg=self.generator.w_avg, num_deltas=self.generator.num_ws - 1)
        if "features" in self.weights:
            terms["features"] = nn.functional.mse_loss(features, own)
        return drawn, terms, self.objective.images(drawn[len(y) :], y)

    def _draw_edits(
        self, x: Tensor, encoder: StyleFeatureEncoder, generator: Generator, sources: Sequence[torch.Generator]
    ) -> Drawn:
        """Draw inversions of pictures, and edits of the pictures that e4e makes of them, by a random source for each.

        For the latter the truth is known: what the generator draws at e4e's edited code.
        """
        with torch.no_grad():
            w_edit = self.e4e(encoder.shrink(x)) - self.e4e.w_avg + generator.w_avg
            moved = torch.cat([draw_edit(self.edits, w[None], rng) for w, rng in zip(w_edit, sources, strict=True)])
            both = torch.cat([w_edit, moved])
            made, target = generator.synthesis(both).chunk(2)
            own, _ = generator.synthesis.features_at(encoder.config.feature_resolution, both)
            before, after = own.chunk(2)
            w_plus, features, _ = encoder(torch.cat([x, made]), generator)
            w_plus = w_plus + torch.cat([torch.zeros_like(moved), moved - w_edit])
        features = encoder.editor(features, torch.cat([torch.zeros_like(before), before - after]))
        drawn, edited = self.resize(generator.synthesis(w_plus, features=features)).chunk(2)
        return drawn, edited, self.resize(target)

    def _train_adversary(self, judged: list[Tensor], batches: Batches, step: int) -> tuple[Terms, bool]:
        """Train the discriminator on the pictures of all processes, so that each updates it in the same way."""
        adversary = self.adversary
        if step < self.config.sfe.adversarial_from:
            return {}, True
        fake, real = (
            with_bars(cast(Tensor, self.accelerator.gather(torch.cat(pictures))))
            for pictures in (judged, [batch["y"] for batch in batches])
        )
        adversary.network.requires_grad_(True)
        loss = discriminator_loss(adversary.network(real), adversary.network(fake))
        terms = {"discriminator": loss.detach()}
        if step % adversary.r1_every == 0:
            penalty = adversary.penalty(real)
            terms["r1"], loss = penalty.detach(), loss + penalty
        finite = adversary.descend(loss)
        adversary.network.requires_grad_(False)
        return terms, finite

    def draw(self, x: Tensor, encoder: Any, generator: Generator) -> Tensor:
        """Draw what the pipeline makes of pictures, (B, 3, R, R), of any side."""
        w_plus, features, _ = encoder(x, generator)
        return generator.synthesis(w_plus, features=encoder.editor(features, torch.zeros_like(features)))

    def score(self, batch: dict[str, Tensor], encoder: Any, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a batch of held-out pictures, and judge them; and edits of them, if those are what is trained."""
        if not self.edits:
            return super().score(batch, encoder, generator)
        sources = [latents.seeded(self.config.seed, "held-out edit", int(number)) for number in batch["index"]]
        drawn, edited, target = self._draw_edits(batch["x"], encoder, generator, sources)
        figures, second = self.figures(drawn, batch["y"]), self.figures(edited, target)
        loss = figures.pop("loss") + second.pop("loss")
        return drawn, {**figures, **{f"{name} (edited)": value for name, value in second.items()}, "loss": loss}


def with_bars(pictures: Tensor) -> Tensor:
    """Make pictures, (B, 3, height, side), square again, as a discriminator saw them: with black above and below."""
    rows, side = pictures.shape[-2:]
    above = (side - rows) // 2
    return nn.functional.pad(pictures, (0, 0, above, side - rows - above), value=-1.0)


@torch.no_grad()
def add_maps(network: FeatureEditor, sign: float) -> None:
    """Let a network begin as the sum of its first map and `sign` times the second, in place; its blocks add nothing."""
    unit = torch.eye(network.config.channels)[..., None, None]
    network.conv.weight.copy_(torch.cat([unit, sign * unit], dim=1))
    nn.init.zeros_(cast(Tensor, network.conv.bias))
    for block in network.blocks:
        nn.init.zeros_(cast(Any, block)[-1].weight)


def draw_edit(edits: Sequence[Direction], w_plus: Tensor, rng: torch.Generator) -> Tensor:
    """Move a code, (1, num_ws, w_dim), along one of the directions, by a strength of its range; `rng` is on the CPU."""
    edit = edits[int(torch.randint(len(edits), (), generator=rng, device="cpu"))]
    low, high = cast(tuple[float, float], edit.strength_range)
    return edit.apply(w_plus, low + (high - low) * float(torch.rand((), generator=rng, device="cpu")))
