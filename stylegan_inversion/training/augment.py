"""Adaptive discriminator augmentation (ADA): the discriminator sees all images through random transforms.

An encoder's pictures may go through some of them too (`vary_photo`).

Paper: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", arXiv:2006.06676, appendix B:
the transforms called "bgc". Original code: NVlabs/stylegan2-ada-pytorch (NVIDIA Source Code Licence). Own code.

Departures:

* R1 must be computed on the augmented images: not all supported PyTorch releases can differentiate `grid_sample`
  twice. Moves in the plane hardly change the norm of a gradient; contrast and saturation scale it.
* Mirroring, quarter turns and whole shifts are moves of pixels, made before the rest and never resampled.
* A symmetric low-pass filter of 12 taps instead of the wavelet sym6, also of 12.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from stylegan_inversion.training.config import AdaptiveOptions, AugmentOptions

NUM_DRAWS = 28  # random numbers a sample
OTHER_CAMERA = AugmentOptions(
    flip=False, blit=False, luma_flip=False, scale=0.06, rotation=0.03, translation=0.02, contrast=0.4, hue=0.04,
    saturation=0.5,
)  # fmt: skip
FILTER_TAPS = 12


def augment(
    images: Tensor, p: float, rngs: Sequence[torch.Generator], *, options: AugmentOptions | None = None
) -> Tensor:
    """Send each image through transforms of its own. Differentiable by the images, once.

    Args:
        images: (B, 3, R, R), RGB, in [-1, 1]; any float type, the arithmetic is float32. The result is not clamped.
        p: Probability of each transform of each sample, in [0, 1]. 0 returns the images themselves.
        rngs: Random source of each sample, on the CPU; each gives `NUM_DRAWS` numbers.
        options: Which transforms there are. `None` means all, as in the paper.
    """
    if p == 0 or len(images) == 0:
        return images
    options = options or AugmentOptions()
    draws = iter(torch.stack([torch.rand(NUM_DRAWS, generator=rng, dtype=torch.float64) for rng in rngs]).unbind(1))
    moves = pixel_moves(draws, p, images.shape[2], options)
    warps = warp_matrices(draws, p, options)
    colors = color_matrices(draws, p, options)
    with torch.autocast(images.device.type, enabled=False):
        images = _where_drawn(images, moves, moves.any(1), move_pixels)
        images = _where_drawn(images, warps, (warps != torch.eye(3)).any(2).any(1), warp)
        return _where_drawn(images, colors, (colors != torch.eye(4)).any(2).any(1), recolor)


def vary_photo(x: Tensor, y: Tensor, p: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make a pair that another camera, light and alignment could have given. Own choice: the papers only mirror.

    Both pictures get the same colours and place (`OTHER_CAMERA`). The encoder's alone is blurred or sharpened, gets
    noise, and goes through JPEG: none of it should be drawn.

    Args:
        x: The encoder's input, (3, S, S), RGB, in [-1, 1]; at most as high as wide, and so is the other.
        y: What is to be drawn, (3, R, R).
        p: Probability of each change, in [0, 1].
        rng: Random source, on the CPU.
    """
    seed = int(torch.randint(2**62, (), generator=rng))

    def moved(image: Tensor) -> Tensor:
        rows, side = image.shape[1:]
        above, rng = (side - rows) // 2, torch.Generator().manual_seed(seed)
        square = F.pad(image[None], (0, 0, above, side - rows - above), mode="replicate")
        return augment(square, p, [rng], options=OTHER_CAMERA)[0, :, above : above + rows].clamp(-1, 1)

    alike, y = x is y, moved(y)
    x = y if alike else moved(x)
    on, amount = torch.rand(2, 3, generator=rng)
    if on[0] < p:
        smooth = F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="reflect"), 3, stride=1)[0]
        x = x + (2.5 * amount[0] - 1) * (x - smooth)
    if on[1] < p:
        x = x + 0.08 * amount[1] * torch.randn(x.shape, generator=rng)
    x = x.clamp(-1, 1)
    if on[2] < p:
        file = io.BytesIO()
        to_pil(x[None])[0].save(file, "JPEG", quality=int(30 + 65 * amount[2]))
        x = to_tensor(Image.open(file))[0]
    return x, y


def pixel_moves(draws: Iterator[Tensor], p: float, side: int, options: AugmentOptions) -> Tensor:
    """Draw moves of pixels, (B, 4): mirrored or not, quarter turns counterclockwise, pixels to the right and down."""
    flip = _drawn(draws, p if options.flip else 0, lambda u: (u * 2).floor())
    turns = _drawn(draws, p if options.blit else 0, lambda u: (u * 4).floor())
    on = next(draws) < (p if options.blit else 0)
    shifts = [torch.where(on, ((2 * next(draws) - 1) * options.shift * side).round(), 0.0) for _ in range(2)]
    return torch.stack([flip, turns, *shifts], dim=1).long()


def warp_matrices(draws: Iterator[Tensor], p: float, options: AugmentOptions) -> Tensor:
    """Draw moves of the plane: scale, turn, stretch, turn, shift; (B, 3, 3), float64, of homogeneous coordinates.

    x is to the right, y down, the image is [-1, 1]^2.
    """
    p = p if options.geometric else 0
    p_turn = 1 - math.sqrt(1 - p)  # so that the probability of at least one of the two is p

    def angle(u: Tensor) -> Tensor:
        return (2 * u - 1) * options.rotation * math.pi

    scale = _drawn(draws, p, lambda u: _normal(u) * options.scale).exp2()
    before = _drawn(draws, p_turn, angle)
    stretch = _drawn(draws, p, lambda u: _normal(u) * options.scale).exp2()
    after = _drawn(draws, p_turn, angle)
    on = next(draws) < p
    # the side is 2 units long
    x, y = (torch.where(on, 2 * _normal(next(draws)) * options.translation, 0.0) for _ in range(2))
    one, zero = torch.ones_like(x), torch.zeros_like(x)

    def rows(*values: Tensor) -> Tensor:
        return torch.stack(values, dim=1).unflatten(1, (3, 3))

    def turned(by: Tensor) -> Tensor:
        return rows(by.cos(), by.sin(), zero, -by.sin(), by.cos(), zero, zero, zero, one)

    scaled = rows(scale, zero, zero, zero, scale, zero, zero, zero, one)
    stretched = rows(stretch, zero, zero, zero, 1 / stretch, zero, zero, zero, one)
    shifted = rows(one, zero, x, zero, one, y, zero, zero, one)
    return shifted @ turned(after) @ stretched @ turned(before) @ scaled


def color_matrices(draws: Iterator[Tensor], p: float, options: AugmentOptions) -> Tensor:
    """Draw moves of the colours: brightness, contrast, luma flip, hue, saturation. (B, 4, 4), of (r, g, b, 1)."""
    p = p if options.color else 0
    brightness = _drawn(draws, p, lambda u: _normal(u) * options.brightness)
    contrast = _drawn(draws, p, lambda u: _normal(u) * options.contrast).exp2()
    flip = _drawn(draws, p if options.luma_flip else 0, lambda u: (u * 2).floor())
    hue = _drawn(draws, p, lambda u: (2 * u - 1) * options.hue * math.pi)
    saturation = _drawn(draws, p, lambda u: _normal(u) * options.saturation).exp2()

    eye = torch.eye(3, dtype=torch.float64)
    luma = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # projects on the grey axis (1, 1, 1) / sqrt(3)
    around = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)  # axis x (.)

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    # Rodrigues' rotation about the grey axis, written so that no rotation is exactly the identity
    turned = eye + each(hue.sin()) * around + each(1 - hue.cos()) * (luma - eye)
    linear = (eye + each(saturation - 1) * (eye - luma)) @ turned @ (eye - 2 * each(flip) * luma) * each(contrast)
    matrices = torch.eye(4, dtype=torch.float64).repeat(len(hue), 1, 1)
    matrices[:, :3, :3] = linear
    matrices[:, :3, 3] = linear.sum(2) * brightness[:, None]
    return matrices


def move_pixels(images: Tensor, moves: Tensor) -> Tensor:
    """Mirror, turn and shift by the moves of `pixel_moves`; outside, the image goes on mirrored at its edge."""
    side = images.shape[2]
    flip, turns, right, down = moves.to(images.device)[:, :, None, None].unbind(1)
    along = torch.arange(side, device=images.device)
    # Where each pixel comes from: the moves backwards.
    x, y = (_mirrored(along[None, None, :] - right, side), _mirrored(along[None, :, None] - down, side))
    x, y = torch.broadcast_tensors(x, y)
    last = side - 1
    for quarter in (1, 2, 3):
        x, y = torch.where(turns >= quarter, last - y, x), torch.where(turns >= quarter, x, y)
    x = torch.where(flip > 0, last - x, x)
    index = (y * side + x).flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, index).view_as(images)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the points of images by the matrices of `warp_matrices`; outside, they go on mirrored at their edge.

    This is done in twice the resolution: filter up, sample bilinearly, filter down.
    """
    side, channels = images.shape[2], images.shape[0] * 3
    half, last = FILTER_TAPS // 2, FILTER_TAPS - 1
    taps = resampling_filter().to(images)
    # Depthwise over all samples at once: on a CPU five times faster than as a batch of single channels.
    down, across = taps.view(-1, 1).expand(channels, 1, -1, 1), taps.expand(channels, 1, 1, -1)
    around = _mirrored(torch.arange(-(half // 2), side + half // 2, device=images.device), side)
    x = images.index_select(2, around).index_select(3, around).flatten(0, 1)[None]  # (1, B * 3, R + 6, R + 6)
    x = F.conv_transpose2d(x, 2 * down, stride=(2, 1), padding=(last, 0), groups=channels)
    x = F.conv_transpose2d(x, 2 * across, stride=(1, 2), padding=(0, last), groups=channels)
    # The filter down takes 5 points more at each edge. Pixel i of 2R has its centre at (i + 1/2) / R - 1.
    at = (torch.arange(1 - half, 2 * side + half - 1, device=images.device, dtype=x.dtype) + 0.5) / side - 1
    back = torch.linalg.inv(matrices).to(images)[:, :2, :, None, None]  # (B, 2, 3, 1, 1)
    grid = back[:, :, 0] * at + back[:, :, 1] * at[:, None] + back[:, :, 2]  # (B, 2, 2R + 10, 2R + 10)
    x = x.view(-1, 3, 2 * side, 2 * side)
    x = F.grid_sample(x, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="reflection", align_corners=False)
    x = F.conv2d(x.flatten(0, 1)[None], down, stride=(2, 1), groups=channels)
    return F.conv2d(x, across, stride=(1, 2), groups=channels).view_as(images)


def recolor(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the colours of images, (B, 3, R, R), by the matrices of `color_matrices`, (B, 4, 4)."""
    weight = matrices.to(images)[:, :3, :, None, None]  # (B, 3, 4, 1, 1)
    red, green, blue = images[:, None].unbind(2)
    return weight[:, :, 0] * red + weight[:, :, 1] * green + weight[:, :, 2] * blue + weight[:, :, 3]


def resampling_filter() -> Tensor:
    """Low-pass filter for resampling by 2, (12,), float64, sum 1: a sinc of cut-off 0.58 in a Kaiser window of 6.25.

    The two numbers make filtering up and down again the identity to 0.3%, among such filters; sym6 is exact there.
    """
    n = torch.arange(FILTER_TAPS, dtype=torch.float64) - (FILTER_TAPS - 1) / 2
    window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=6.25, dtype=torch.float64)
    taps = torch.sinc(0.58 * n) * window
    return taps / taps.sum()


def _drawn(draws: Iterator[Tensor], p: float, value: Callable[[Tensor], Tensor]) -> Tensor:
    """A value for the samples whose turn it is, 0 for the others, (B,); takes two draws."""
    on, u = next(draws) < p, next(draws)
    return torch.where(on, value(u), 0.0)


def _normal(u: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones."""
    return torch.special.ndtri(u.clamp(2**-53, 1 - 2**-53))


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Indices outside of [0, side) mirrored into it at the edge: -1 is 0, side is side - 1."""
    index = index % (2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def _where_drawn(images: Tensor, draws: Tensor, changed: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Change the samples that something was drawn for; the others keep their bits."""
    rows = changed.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    some = rows.to(images.device)
    new = change(images.index_select(0, some).float(), draws[rows])
    return images.index_copy(0, some, new.to(images.dtype))


class AdaptiveProbability:
    """The probability p that keeps the discriminator from overfitting: it follows r_t = E[sign(D(real))].

    r_t is an average over at least `every` real pictures, after which p moves; the paper takes 4 batches of 64.
    """

    def __init__(self, options: AdaptiveOptions, *, every: int = 256) -> None:
        self.target, self.kimg, self.p, self.every = options.target, options.kimg, options.p, every
        self.r_t = 0.0  # at the last move of p
        self._signs, self._images = 0.0, 0

    def observe(self, signs: float, images: int) -> float:
        """Note the sum of sign(D(real)) over the augmented real images of all processes, and move p when it is time."""
        self._signs, self._images = self._signs + signs, self._images + images
        if self._images >= self.every:
            self.r_t = self._signs / self._images
            if self.kimg:
                sign = (self.r_t > self.target) - (self.r_t < self.target)
                self.p = min(max(self.p + sign * self._images / (self.kimg * 1000), 0.0), 1.0)
            self._signs, self._images = 0.0, 0
        return self.p

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"p": self.p, "r_t": self.r_t, "signs": self._signs, "images": self._images}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        self.p, self.r_t = float(state["p"]), float(state["r_t"])
        self._signs, self._images = float(state["signs"]), int(state["images"])
