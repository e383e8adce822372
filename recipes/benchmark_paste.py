# /// script
# requires-python = ">=3.10"
# dependencies = ["stylegan-inversion"]
# ///
"""How near a pasted edit comes to the truth, for each way to paste.

usage: python recipes/benchmark_paste.py [--faces 25] [--seed 2]

The photo is a picture that faces64 draws, enlarged four times, so its edit is known: faces64 draws that too. What is
pasted comes from a worse picture of the same face, in two ways:

- coarse: the two pictures reduced to 32 px, as a generator draws them that has found the face exactly.
- e4e: the code that e4e finds for the photo, and its edit, at 64 px. The face is missed as an encoder misses it.

"colours" goes a part of the way to the fine styles of the next face, and as far away from them.

Prints PSNR in dB, LPIPS (AlexNet) times 1000 and identity (cosine of the built-in network), all against the truth
inside the seam, as the mean over faces and both signs of the edit, with its standard error over faces.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylegan_inversion import E4EPipeline
from stylegan_inversion.editing.directions import apply_directions
from stylegan_inversion.latents import broadcast, random_source, truncate
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.preprocessing.align import Crop, rectangle
from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from stylegan_inversion.preprocessing.paste import paste_back

SIDE, RIM = 256, 26  # pixels of a photo, and those at each edge that no figure counts
EDITS = {"yaw": 6.0, "smile": 4.0, "age": 4.0, "colours": 0.7}
FINE = 6  # the first style that changes colours alone


def blend_gradients(crop: Crop, edited: Image.Image) -> Image.Image:
    """Solve Poisson's equation for the edited face inside the photo (Pérez et al. 2003), as OpenCV does."""
    import cv2

    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[RIM // 2 : -RIM // 2, RIM // 2 : -RIM // 2] = 255
    face = np.asarray(edited.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    centre = (SIDE // 2, SIDE // 2)
    return Image.fromarray(cv2.seamlessClone(face, np.asarray(crop.photo), mask, centre, cv2.NORMAL_CLONE))


WAYS: dict[str, Callable[[Crop, Image.Image, Image.Image], Image.Image]] = {
    'detail="move"': lambda crop, edited, before: paste_back(crop, edited, reference=before),
    'detail="add"': lambda crop, edited, before: paste_back(crop, edited, reference=before, detail="add"),
    'detail="none"': lambda crop, edited, before: paste_back(crop, edited, detail="none"),
    'detail="none", feather=0.3': lambda crop, edited, before: paste_back(crop, edited, detail="none", feather=0.3),
    "gradient domain": lambda crop, edited, before: blend_gradients(crop, edited),
    "no edit: the photo": lambda crop, edited, before: crop.photo,
}


@torch.no_grad()
def main() -> None:
    """Draw the faces, paste in each way, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=25)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    pipeline = E4EPipeline.from_pretrained("faces64", device="cpu")
    generator, lpips, identity = pipeline.generator, load_perceptual("alex"), load_identity()
    z = torch.randn(args.faces, generator.config.z_dim, generator=random_source(args.seed))
    w = broadcast(generator.mapping(z), generator.num_ws)
    codes = truncate(w, generator.w_avg, truncation_psi=0.7)

    def draw(w_plus: Tensor, **edit: float) -> Image.Image:
        return to_pil(generator.synthesis(apply_directions(w_plus, pipeline.directions, strengths=edit)))[0]

    def draw_edited(w_plus: Tensor, name: str, strength: float, colours: Tensor) -> Image.Image:
        return draw(w_plus + strength * colours) if name == "colours" else draw(w_plus, **{name: strength})

    def large(image: Image.Image) -> Image.Image:
        return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    def small(image: Image.Image) -> Image.Image:
        return image.resize((32, 32), Image.Resampling.LANCZOS)

    # (setting, way, edit) -> PSNR, LPIPS and identity of each picture
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for code, following in zip(codes[:, None], codes.roll(-1, 0)[:, None], strict=True):
        face = draw(code)
        colours = (following - code) * (torch.arange(generator.num_ws) >= FINE)[:, None]
        encoded = pipeline(face, align=False).w_plus
        for name, strength in EDITS.items():
            for signed in (strength, -strength):
                edited = draw_edited(code, name, signed, colours)
                truth = to_tensor(large(edited))[..., RIM:-RIM, RIM:-RIM]
                pairs = {"coarse": (small(edited), small(face))}
                pairs["e4e"] = (draw_edited(encoded, name, signed, colours), draw(encoded))
                for setting, (after, before) in pairs.items():
                    target = face if setting == "e4e" else small(face)
                    crop = Crop(target, rectangle(0, 0, SIDE, SIDE), large(face), 1, 0)
                    for way, paste in WAYS.items():
                        result = to_tensor(paste(crop, after, before))[..., RIM:-RIM, RIM:-RIM]
                        figures = [
                            10 * math.log10(4 / float((result - truth).square().mean())),
                            1000 * float(lpips(result, truth)),
                            float((identity.embed(result) * identity.embed(truth)).sum()),
                        ]
                        found.setdefault((setting, way, name), []).append(figures)
    print(f"{args.faces} faces, {2 * len(EDITS) * args.faces} edits")
    for setting in ("coarse", "e4e"):
        print(f"\n| {setting} | " + " | ".join(f"{name} ±{strength:g}" for name, strength in EDITS.items()) + " |")
        print("|---|" + "---:|" * len(EDITS))
        for way in WAYS:
            print(f"| {way} | " + " | ".join(cell(found[setting, way, name]) for name in EDITS) + " |")


def cell(rows: list[list[float]]) -> str:
    """Format the three means and their standard errors."""
    faces = np.array(rows).reshape(-1, 2, 3).mean(1)  # (faces, 3): both signs of a face are no two samples
    means, errors = faces.mean(0), faces.std(0, ddof=1) / math.sqrt(len(faces))
    digits = (2, 1, 4)
    return ", ".join(f"{mean:.{d}f} ± {error:.{d}f}" for mean, error, d in zip(means, errors, digits, strict=True))


if __name__ == "__main__":
    main()
