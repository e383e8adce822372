"""StyleCLIP's global directions: from one text to another, such as "a face" to "a smiling face", as channels of S.

Paper: Patashnik et al. 2021, arXiv:2103.17249, section 6. Original code: orpatashnik/StyleCLIP (MIT). Own code.

1. Relevance, once for a generator: each style is set to its mean plus and minus 5 standard deviations in random images.
   The change of the image's embedding by CLIP, of unit length, averaged over the images, says what the channel means.
2. The texts' change: the difference of their embeddings, each the mean over the sentences of CLIP's ImageNet prompts.
3. The channels whose relevance along it is at least beta make the direction; it moves the most relevant one by one
   standard deviation at strength 1.

As in the original code, the channels are those of the style layers up to 128 px, without ToRGB. Departures: mean and
deviation are those of 4096 w, there of 100,000; it has 79 of the 80 prompts.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from stylegan_inversion import latents, storage
from stylegan_inversion.errors import CheckpointError, importing
from stylegan_inversion.hub import Access, download
from stylegan_inversion.models.generator import Generator

CLIP = "timm/vit_base_patch32_clip_224.openai"  # the paper's ViT-B/32, as safetensors
BETA = 0.13
_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
_MAX_SIDE, _REACH, _SAMPLES = 128, 5.0, 4096
_ARTICLE = re.compile(r"(an?|the) ")  # the prompts bring their own


class Clip(nn.Module):
    """A CLIP of OpenCLIP, which compares images with texts. Embeddings have unit length."""

    def __init__(self, network: Any, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.network, self.tokenizer, self.name = network.eval().requires_grad_(False), tokenizer, name

    def forward(self, x: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch embedding"]:
        """Embed images, (B, 3, S, S), RGB, in [-1, 1]."""
        how = self.network.visual.preprocess_cfg
        size = how["size"] if isinstance(how["size"], int) else how["size"][-1]
        x = F.interpolate(x.float().clamp(-1, 1), (size, size), mode="bicubic", antialias=True) / 2 + 0.5
        mean, std = (x.new_tensor(how[key])[:, None, None] for key in ("mean", "std"))
        return self.network.encode_image((x.clamp(0, 1) - mean) / std, normalize=True)

    def change(self, source: str, target: str) -> Float[Tensor, " embedding"]:
        """The direction from one text to another: the normalised difference of their embeddings.

        Raises `ValueError` if the texts are empty or the same.
        """
        import open_clip

        texts = [
            _ARTICLE.sub("", text.strip(), count=1) if _ARTICLE.match(text) else text.strip()
            for text in (source, target)
        ]
        if not all(texts) or texts[0] == texts[1]:
            raise ValueError(
                f"Give two texts that differ, what there is and what is to be, got {source!r} and {target!r}."
            )
        device = next(self.network.parameters()).device
        prompts = open_clip.OPENAI_IMAGENET_TEMPLATES
        embeddings = open_clip.build_zero_shot_classifier(self.network, self.tokenizer, texts, prompts, device=device)
        return F.normalize(embeddings[:, 1] - embeddings[:, 0], dim=0)


def name_of(source: str, target: str) -> str:
    """Make a name of the words that the target has and the source has not, such as "smiling"."""
    words = [word for word in re.findall(r"\w+", target.lower()) if word not in re.findall(r"\w+", source.lower())]
    return re.sub(r"^(?=\d|$)", "to_", "_".join(words))


def load_clip(
    name_or_path: str | os.PathLike[str] = CLIP, access: Access = Access(), *, device: torch.device | str | None = None
) -> Clip:
    """Load a CLIP of OpenCLIP from a folder or the Hub, by default the paper's (605 MB).

    Raises:
        MissingDependencyError: If `open_clip_torch` is not installed.
        ModelNotFoundError: If it cannot be fetched.
        CheckpointError: If it lacks `open_clip_config.json` or `open_clip_model.safetensors`, they do not fit, or its
            texts need transformers.
    """
    with importing("open_clip", "clip", otherwise=""):
        import open_clip
    folder = Path(name_or_path)
    name = folder.resolve().name  # of a folder; a model that is passed on need not say where it was
    if not folder.is_dir():
        folder = download(
            str(name_or_path), _FILES, access, otherwise=f", or give the folder that holds {' and '.join(_FILES)}"
        )
        name = str(name_or_path)
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} holds no {missing[0]}: it is no CLIP that OpenCLIP saved as safetensors.")
    try:
        texts = json.loads((folder / _FILES[0]).read_text("utf-8"))["model_cfg"]["text_cfg"]
        if others := [key for key in texts if key.startswith("hf_")]:
            raise ValueError(f"its {others[0]} names parts of transformers, which may fetch and run code.")
        network = open_clip.create_model(f"local-dir:{folder}")
        return Clip(network, open_clip.get_tokenizer(f"local-dir:{folder}"), name).to(device)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder} holds no CLIP that OpenCLIP reads: {str(e)[:300]}") from e


@dataclass(frozen=True, eq=False)
class Relevance:
    """What each style of a generator does to the embedding of an image."""

    rows: Float[Tensor, "num_styles embedding"]  # of unit length; zeros for the styles that are left alone
    deviation: Float[Tensor, " num_styles"]  # standard deviation of each style over w
    clip: str  # whose embeddings they are

    def step(self, change: Float[Tensor, " embedding"], *, beta: float = BETA) -> Float[Tensor, " num_styles"]:
        """Give what strength 1 of the direction for a change of text adds to the styles.

        Args:
            change: See `Clip.change`.
            beta: Threshold of the relevance, in [0, 1): a higher one moves fewer channels, which is less entangled.

        Raises:
            ValueError: If `beta` is out of range, or no channel is so relevant.
        """
        if not 0 <= beta < 1:
            raise ValueError(f"`beta` must be in [0, 1), got {beta}.")
        relevance = self.rows @ change.to(self.rows)
        largest = float(relevance.abs().max())
        if largest < beta or largest == 0:
            raise ValueError(
                f"No channel has a relevance of {beta:g} for this change of text: the largest is {largest:.3g}."
            )
        return relevance.where(relevance.abs() >= beta, 0) / largest * self.deviation

    def save(self, folder: Path) -> Path:
        """Write it, whole or not at all."""
        with storage.write_together(folder) as stage:
            storage.write_tensors({"rows": self.rows, "deviation": self.deviation}, stage / storage.WEIGHTS_NAME)
            storage.write_config({"clip": self.clip}, stage)
        return folder

    @classmethod
    def load(cls, folder: Path, generator: Generator) -> "Relevance":
        """Read what `save` wrote for this generator. Raises `CheckpointError` if it is damaged or for another one."""
        tensors, config = storage.read_tensors(folder / storage.WEIGHTS_NAME), storage.read_config(folder)
        rows, deviation = tensors.get("rows", torch.empty(0)), tensors.get("deviation", torch.empty(0))
        count = sum(generator.config.style_sizes)
        if rows.ndim != 2 or len(rows) != count or deviation.shape != (count,):
            raise CheckpointError(f"{folder} is not of this generator, which has {count} styles: remove it.")
        return cls(rows.float(), deviation.float(), str(config.get("clip")))

    @classmethod
    def of_model(cls, folder: Path, generator: Generator) -> "Relevance | None":
        """Read that of a model's folder; `None` if it was not measured. Raises as `load` does."""
        place = folder / "relevance"
        return cls.load(place, generator) if (place / storage.WEIGHTS_NAME).is_file() else None


@torch.no_grad()
def measure_relevance(
    generator: Generator,
    clip: Callable[[Tensor], Tensor],
    *,
    name: str = CLIP,
    num_images: int = 100,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Relevance:
    """Measure what each style does to the embedding of an image. It draws two images a style and random image.

    Args:
        generator: Draws the images.
        clip: Images (B, 3, R, R), RGB, in [-1, 1] -> embeddings of unit length, (B, D), such as `Clip`.
        name: What `clip` is.
        num_images: Random images, >= 1; the paper's 100.
        batch_size: Of them that go through together, >= 1.
        seed: Seed of the images, >= 0.
        progress: Show a progress bar.
    """
    for option, value, least in (("num_images", num_images, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"`{option}` must be >= {least}, got {value}.")
    w = generator.sample_w(max(_SAMPLES, num_images), latents.seeded(seed, "relevance", 0))
    styles = generator.styles_of(latents.broadcast(w, generator.num_ws))
    mean, deviation = styles.mean(dim=0), styles.std(dim=0)
    moved = sum(size for k, size in enumerate(generator.config.style_sizes) if 4 * 2 ** ((k + 1) // 2) <= _MAX_SIDE)
    rows = list[Tensor]()
    for channel in tqdm(range(moved), disable=not progress, unit="channel", desc="relevance of S for CLIP"):
        changes = list[Tensor]()
        for part, own in zip(w[:num_images].split(batch_size), styles[:num_images].split(batch_size)):
            offset = torch.zeros(2, *own.shape, device=own.device, dtype=own.dtype)
            for k, sign in enumerate((-1, 1)):
                offset[k, :, channel] = mean[channel] + sign * _REACH * deviation[channel] - own[:, channel]
            w_plus = latents.broadcast(part, generator.num_ws).repeat(2, 1, 1)
            low, high = clip(generator.synthesis(w_plus, styles=offset.flatten(0, 1)).clamp(-1, 1)).chunk(2)
            changes.append(F.normalize(high - low, dim=1))
        rows.append(F.normalize(torch.cat(changes).mean(dim=0), dim=0).cpu().float())
    unmoved = torch.zeros(len(mean) - moved, len(rows[0]))
    return Relevance(torch.cat([torch.stack(rows), unmoved]), deviation.cpu().float(), name)
