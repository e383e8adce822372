"""Put an edited face back into the photo it was cut from: the inverse of `align`, with a soft seam."""

import numpy as np
from PIL import Image

from stylegan_inversion.preprocessing.align import Crop, rectangle, shrink_factor

_BAND_PIXELS = 2**20  # rows are pasted in bands, so that a large photo needs no more memory
_MAX_RESIZED = 2048  # pixels a side


def paste_back(
    crop: Crop, image: Image.Image, *, reference: Image.Image | None = None, feather: float = 0.08
) -> Image.Image:
    """Put an edited face back where its crop came from. Every pixel outside the quad keeps its exact value.

    Args:
        crop: Where the face came from.
        image: The edited face: RGB, square, any size.
        reference: The face before the edit as the same generator draws it, same size as `image`. If given, only the
            change (`image - reference`) is added to the photo, so the photo keeps its own detail. `None` replaces the
            face, except near an edge of the photo that the crop crosses: the crop is blurred there.
        feather: Width of the soft seam, which lies inside the quad, relative to its side, in [0, 0.5]. 0 is a hard
            edge. A crop that is the whole photo has no seam.

    Raises:
        ValueError: If `image` is not RGB and square, `reference` does not match it, or `feather` is out of range.
    """
    if image.mode != "RGB" or image.width != image.height:
        raise ValueError(f"`image` must be RGB and square, got {image.mode}, {image.width} x {image.height}.")
    if reference is not None and (reference.mode != "RGB" or reference.size != image.size):
        raise ValueError(
            f"`reference` must be RGB and as large as `image`, got {reference.mode}, {reference.width} x "
            f"{reference.height} for {image.width} x {image.height}."
        )
    if not 0 <= feather <= 0.5:
        raise ValueError(f"`feather` must be in [0, 0.5], got {feather}.")
    photo, quad = crop.photo.copy(), crop.quad
    if quad is None:
        quad, feather = rectangle(0, 0, photo.width, photo.height), 0.0
    sharp_x, sharp_y = np.ones(photo.width), np.ones((photo.height, 1))
    if reference is None and not crop.is_central:
        sharp_x, sharp_y = _sharpness(crop, quad)
    planes, plane_size = _fit(image, reference, quad)

    low = np.maximum(np.ceil(quad.min(0)), 0).astype(int)
    high = np.minimum(np.floor(quad.max(0)) + 1, photo.size).astype(int)
    # photo (x, y) -> (u, v), 0 to 1 across the face
    to_face = np.linalg.inv(np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1))
    rows = max(1, _BAND_PIXELS // max(1, high[0] - low[0]))
    for top in range(low[1], high[1], rows):
        box = (int(low[0]), top, int(high[0]), min(top + rows, int(high[1])))
        width, height = box[2] - box[0], box[3] - box[1]
        x, y = np.arange(width) + box[0] - quad[0, 0], np.arange(height)[:, None] + box[1] - quad[0, 1]
        u, v = to_face[0, 0] * x + to_face[0, 1] * y, to_face[1, 0] * x + to_face[1, 1] * y
        inside = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))  # (H, W), distance from the edge
        ramp = np.clip(inside / feather, 0, 1) if feather > 0 else (inside >= 0).astype(np.float64)
        ramp = np.minimum(ramp, np.minimum(sharp_x[box[0] : box[2]], sharp_y[box[1] : box[3]]))
        mask = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
        # Pillow wants the place of (0, 0), a corner of the first pixel: half a pixel before its centre
        origin = to_face @ (np.array(box[:2]) - 0.5 - quad[0])
        affine = np.column_stack([to_face, origin]) * np.array(plane_size)[:, None]
        affine[:, 2] += 2  # the rim of `_fit`
        band = np.array(photo.crop(box), dtype=np.float32)
        for channel, plane in enumerate(planes):
            values = np.asarray(
                plane.transform(
                    (width, height), Image.Transform.AFFINE, tuple(affine.ravel()), Image.Resampling.BICUBIC
                )
            )
            change = values if reference is not None else values - band[..., channel]
            band[..., channel] += mask * change
        photo.paste(Image.fromarray(np.clip(np.rint(band), 0, 255).astype(np.uint8)), box[:2])
    return photo


def _fit(
    image: Image.Image, reference: Image.Image | None, quad: np.ndarray
) -> tuple[list[Image.Image], tuple[int, int]]:
    """Resize to about the quad's size: three float planes with a rim of 2 pixels, and their size without it."""
    limit = max(_MAX_RESIZED, image.width)
    sides = np.hypot(*(quad[[3, 1]] - quad[0]).T)
    width, height = (int(side) for side in np.clip(np.rint(sides), 1, limit))
    method = Image.Resampling.LANCZOS if width < image.width else Image.Resampling.BICUBIC
    pixels = np.asarray(image, dtype=np.float32)
    if reference is not None:
        pixels = pixels - np.asarray(reference, dtype=np.float32)
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., i])).resize((width, height), method) for i in range(3)]
    return [Image.fromarray(np.pad(np.asarray(plane), 2, mode="edge")) for plane in planes], (width, height)


def _sharpness(crop: Crop, quad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute how much of the photo's detail the crop's padding left, in [0, 1]: along x (W,), and along y (H, 1)."""
    side = float(np.hypot(*(quad[3] - quad[0])))
    border, size = 0.1 * side, np.array(crop.photo.size)
    before, after = -quad.min(0), quad.max(0) - (size - 1)  # how far the quad reaches beyond the photo
    result = []
    for axis in range(2):
        place, keep = np.arange(size[axis]), np.ones(size[axis])
        if max(*before, *after) > -4 * shrink_factor(side, crop.image.width):
            for reach, distance in ((before[axis], place), (after[axis], place[::-1])):
                edge = max(-reach - border, 0.0)
                keep = np.minimum(keep, np.clip((distance - edge) * 3 / max(reach + border, 0.3 * side), 0, 1))
        result.append(keep)
    return result[0], result[1][:, None]
