"""Step 7 of faces64: adversarial training of samples and of pictures that are drawn again, judged on frozen features.

    python recipes/faces64/gan.py --config recipes/faces64/gan_start.yaml

It goes on from a model with the encoder of an autoencoder (folder `autoencoder`), as `autoencoder.py` and `prior.py`
leave it. The discriminator is made of small heads on frozen networks, see `feature_discriminator.py`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from feature_discriminator import FeatureDiscriminator, FeatureDiscriminatorConfig
from image_encoder import ImageEncoder, ImageEncoderConfig
from reconstruction import Reconstruction, ReconstructionOptions
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.bounds import number
from stylegan_inversion.losses.identity import FaceResEmbedding, load_identity
from stylegan_inversion.training.config import GANConfig, load_config
from stylegan_inversion.training.gan import Batches, GANLearner
from stylegan_inversion.training.objective import Terms, check_side
from stylegan_inversion.training.trainer import train_main

SMALLEST_FACE = 103  # px: one less, and the last stage of the face network would have nothing to look at
FITTED, FITTED_AT_ONCE = 256, 8  # pictures that new heads are fitted to


@dataclass(frozen=True)
class HeadOptions:
    """The discriminator: heads on the features of frozen networks."""

    new: bool = False  # begin with a new one even if `init` brings one
    networks: tuple[str, ...] = ("perceptual",)  # whose features: perceptual, face, or both
    face_resolution: int = number(112, SMALLEST_FACE, 2048)  # side of the pictures for the face network
    width: int = number(64, 1, 4096)  # channels of a head
    lr: float | None = number(None, 1e-12, 100.0)  # learning rate; None: the generator's


@dataclass(frozen=True)
class WarmGANConfig(GANConfig):
    """An adversarial run that goes on from an autoencoder."""

    discriminator: HeadOptions = field(default_factory=HeadOptions)  # type: ignore[assignment]
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not 0 < self.reconstruction.batch_size < self.batch_size:
            raise ValueError(
                f"`reconstruction.batch_size` must be in [1, {self.batch_size - 1}], below `batch_size`, got "
                f"{self.reconstruction.batch_size}."
            )


class WarmGANLearner(GANLearner):
    """`GANLearner` with heads on features for a discriminator, and an encoder whose reconstructions are judged, too."""

    def __init__(self, config: WarmGANConfig, accelerator: Accelerator) -> None:
        """Build or load everything."""
        self.options = config.reconstruction
        super().__init__(config, accelerator)
        assert self.init is not None, "`init` must be a model of autoencoder.py or prior.py"
        encoder = storage.load_module(ImageEncoder, ImageEncoderConfig, self.init / "autoencoder")
        if self.options.lpips:
            side = self.generator.config.resolution
            check_side(self.perceptual, side, otherwise="set --reconstruction.lpips 0")
        self.reconstruction = Reconstruction(
            encoder,
            self.options,
            perceptual=self.perceptual if self.options.lpips else None,
            optimizer=config.optimizer,
            accelerator=accelerator,
            steps=config.steps,
        )
        if "face" in config.discriminator.networks:
            face = load_identity(device=accelerator.device)
            self.score_features["fd (FaceRes)"] = lambda images: [face.embed(images)]

    def make_discriminator(self) -> nn.Module:
        """Build heads and fit them to training pictures, or load those of `init`."""
        options, device = cast(Any, self.config).discriminator, self.accelerator.device
        side = self.generator.config.resolution
        sources: list[Callable[[Tensor], list[Tensor]]] = []
        if "perceptual" in options.networks:
            check_side(self.perceptual, side, otherwise="set --discriminator.networks face")
            sources.append(self.perceptual.features)
        if "face" in options.networks:
            network = cast(FaceResEmbedding, load_identity(device=device)).network
            sources.append(partial(network.features, resolution=options.face_resolution))

        def features(x: Tensor) -> list[Tensor]:
            return [layer for source in sources for layer in source(x)]

        folder = None if self.init is None or options.new else self.init / "discriminator"
        if (
            folder
            and folder.is_dir()
            and storage.read_config(folder).get("_class_name") == FeatureDiscriminator.__name__
        ):
            heads = storage.load_module(FeatureDiscriminator, FeatureDiscriminatorConfig, folder)
            heads.features = features
            return heads
        with torch.no_grad():
            channels = tuple(layer.shape[1] for layer in features(torch.zeros(1, 3, side, side, device=device)))
        heads = FeatureDiscriminator(FeatureDiscriminatorConfig(channels, options.width), features).to(device)
        pictures = self.open_data(training=False)
        assert pictures is not None  # the config wants data
        chosen = range(0, len(pictures), max(1, len(pictures) // FITTED))[:FITTED]
        parts = (chosen[first : first + FITTED_AT_ONCE] for first in range(0, len(chosen), FITTED_AT_ONCE))
        heads.fit(torch.stack([pictures[index]["y"] for index in part]).to(device) for part in parts)
        return heads

    def fakes(self, batch: dict[str, Tensor], serial: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Draw samples, then reconstructions, in one pass; and the first w of the samples."""
        again = self.options.batch_size
        count = self.config.batch_size - again
        statistics = self.reconstruction.statistics()
        w_plus, w = self.draws.styles(purpose, serial, count, mixing=self.config.adversarial.style_mixing)
        noise = self.noise(serial, count, f"{purpose} noise")
        w_again, noise_again = self.reconstruction.codes(
            batch["y"][:again], self.draws, serial, num_ws=self.generator.num_ws
        )
        if purpose != "generator":
            self.reconstruction.restore(statistics)  # the generator's step has moved them already
        noise = [torch.cat(pair) for pair in zip(noise, noise_again)]
        return self.generator.synthesis(torch.cat([w_plus, w_again]), noise=noise), w

    def generator_terms(self, images: Tensor, batch: dict[str, Tensor], serial: int) -> Terms:
        """The adversarial loss of all pictures, and the errors of the reconstructions."""
        again = self.options.batch_size
        terms = super().generator_terms(images, batch, serial)
        loss, errors = self.reconstruction.losses(images[-again:], batch["y"][:again])
        return terms | errors | {"loss": terms["loss"] + loss}

    def _generator_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        statistics = self.reconstruction.statistics()
        terms, finite = super()._generator_step(batches, step)
        finite = self.reconstruction.step(terms["loss"], step) and finite
        if not finite:
            self.reconstruction.restore(statistics)
        return terms, finite

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        return super().state() | {"reconstruction": self.reconstruction.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        super().load_state(state)
        self.reconstruction.load_state(state["reconstruction"])

    def exported(self) -> dict[str, nn.Module]:
        """The networks of the saved model, with the encoder."""
        return super().exported() | {"autoencoder": self.reconstruction.encoder}


if __name__ == "__main__":
    sys.exit(train_main(load_config(sys.argv[1:], [WarmGANConfig]), WarmGANLearner))
