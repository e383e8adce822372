"""Put an edited face back into the photo it was cut from: the inverse of `align`, with a soft seam.

The photo has detail that the generator cannot draw, and an edit moves it. Where it goes is seen in the generator's own
two pictures, before and after the edit: dense inverse search (Kroeger et al. 2016, arXiv:1603.03590) finds the motion
between them. Only motion that explains the change is believed; it is spread smoothly over the face, the photo moves
along, and what the motion does not explain is added. Lengths are in pixels of the generator or fractions of the crop.
"""

import itertools
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.preprocessing.align import Crop, rectangle, shrink_factor

Detail = Literal["move", "add", "none"]
"""What becomes of the photo's own detail, see `paste_back`."""

_TILE = 256  # pixels of the photo; tiles fit into the processor's cache, and bound the memory for a large photo
_MAX_RESIZED = 2048  # pixels a side

# Motion; lengths are fractions of the crop.
_FLOW_SIZE = 320  # pixels a side of the two pictures between which it is searched
_SMOOTH = 6 / 320  # standard deviation of its smoothing
_RIM = 0.12  # width of the border in which it fades to 0
_MISMATCH = 6 / 320  # a point that goes forth and back may end so far from its start
_NOISE = 2.0  # grey levels; changes as small as this are no sign of motion
_DOUBT = 0.1  # weight of "no motion", where that of a motion that explains everything is 1
_TINY = 0.2  # pixels of the generator; smaller motion fades to 0, since adding the change does as well there

# Features and colours that the generator drew elsewhere than the photo has them; lengths are fractions of the crop.
_MAP_SIZE = 160  # pixels a side of the maps that say where
_FEATURE = 2.5 / 64  # standard deviation of the low-pass that splits features off
_AREA = 3 / 64  # standard deviation of the window in which they are compared
_FAR = 1 / 64  # motion from which on they count in full
_AROUND = 0.08  # standard deviation of the neighbourhood of motion in which colours are doubted
_TINT = 10.0  # grey levels; half of a change of tint is added where the generator misses the photo's by so much

# What is added to the moved photo; lengths are pixels of the generator.
_FINE = 0.8  # standard deviation of the low-pass that splits off the generator's finest detail
_WINDOW = 1.5  # standard deviation of the window in which that detail is compared with the photo's
_FAINT = 1.0  # grey levels; fainter detail counts as equal

# Where the generator's picture replaces the photo; lengths are fractions of the crop.
_STRUCTURE = 1.5 / 64  # standard deviation of the window in which the pictures before and after are compared
_CONTRAST = 4.0  # grey levels; structures of less contrast count as equal
_SOFT = 2 / 320  # standard deviation of the soft transition


def paste_back(
    crop: Crop,
    image: Image.Image,
    *,
    reference: Image.Image | None = None,
    detail: Detail = "move",
    feather: float = 0.08,
) -> Image.Image:
    """Put an edited face back where its crop came from. Every pixel outside the quad keeps its exact value.

    Args:
        crop: Where the face came from.
        image: The edited face: RGB, in the shape of the crop, any size.
        reference: The face before the edit as the same generator draws it, same size as `image`. If it equals `image`,
            the photo comes back unchanged. `None` replaces the face, as `detail="none"` does.
        detail: `"move"` lets the photo's own detail follow the motion of the edit, and adds the rest of the change.
            `"add"` adds the change (`image - reference`) to the photo, whose detail stays where it is. `"none"`
            replaces the face, except near an edge of the photo that the crop crosses: the crop is blurred there.
        feather: Width of the soft seam, which lies inside the quad, relative to its side, in [0, 0.5]. 0 is a hard
            edge. A crop that is the whole photo has no seam.

    Raises:
        ValueError: If `image` is not RGB, or in another shape than the crop, `reference` does not match it, or `detail`
            or `feather` is bad.
        MissingDependencyError: If OpenCV is not installed.
    """
    wide, high = crop.image.size
    if image.mode != "RGB" or abs(image.width * high - image.height * wide) >= max(wide, high):
        what = f"RGB, in the shape of the crop ({wide} x {high})"
        raise ValueError(f"`image` must be {what}, got {image.mode}, {image.width} x {image.height}.")
    if reference is not None and (reference.mode != "RGB" or reference.size != image.size):
        raise ValueError(
            f"`reference` must be RGB and as large as `image`, got {reference.mode}, {reference.width} x "
            f"{reference.height} for {image.width} x {image.height}."
        )
    if detail not in get_args(Detail):
        raise ValueError(f"`detail` must be one of {', '.join(get_args(Detail))}, got {detail!r}.")
    if not 0 <= feather <= 0.5:
        raise ValueError(f"`feather` must be in [0, 0.5], got {feather}.")
    cv2 = _opencv()
    photo, quad = crop.photo.copy(), crop.quad
    if quad is None:
        quad, feather = rectangle(0, 0, photo.width, photo.height), 0.0
    sharp_x, sharp_y = np.ones(photo.width, np.float32), np.ones((photo.height, 1), np.float32)
    axes = np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1)  # (u, v), 0 to 1 across the face -> photo (x, y)
    sides = np.maximum(np.rint(np.hypot(*axes)), 1).astype(int)
    edited = np.asarray(image, dtype=np.float32)
    # The pasted picture is keep * photo + drawn, in which the photo has moved by the flow.
    flow, method = np.zeros((1, 1, 2), np.float32), cv2.INTER_CUBIC
    if reference is None or detail == "none":
        keep, drawn = np.zeros(edited.shape[:2], np.float32), edited
        if not crop.is_central:
            sharp_x, sharp_y = _sharpness(crop, quad)
    elif np.array_equal(before := np.asarray(reference, dtype=np.float32), edited):
        return photo
    elif detail == "add":
        keep, drawn = np.ones(edited.shape[:2], np.float32), edited - before
    else:
        flow = _motion(cv2, edited, before)
        keep, drawn = _follow(cv2, edited, before, np.asarray(crop.image, dtype=np.float32), flow)
        flow, method = flow @ axes.T.astype(np.float32), cv2.INTER_LINEAR  # faster, and `drawn` is fine enough
    moves = flow.any()
    shape = np.minimum(sides, max(keep.shape) if moves else max(_MAX_RESIZED, max(keep.shape)))
    if not moves or (sides < 0.8 * np.array(keep.shape[::-1])).any():  # otherwise sampling hardly aliases
        drawn, keep = _fit(drawn, shape), _fit(keep[..., None], shape)
    reach = 3 + int(np.ceil(np.abs(flow).max()))  # pixels of the photo around a tile that may move into it
    here = np.dstack(np.meshgrid(*[np.arange(_TILE + reach, dtype=np.float32)] * 2))

    to_face = np.linalg.inv(axes)
    low = np.maximum(np.ceil(quad.min(0)), 0).astype(int).tolist()
    high = np.minimum(np.floor(quad.max(0)) + 1, photo.size).astype(int).tolist()
    for left, top in itertools.product(range(low[0], high[0], _TILE), range(low[1], high[1], _TILE)):
        right, bottom = min(left + _TILE, high[0]), min(top + _TILE, high[1])
        x, y = np.arange(left, right) - quad[0, 0], np.arange(top, bottom)[:, None] - quad[0, 1]
        u, v = to_face[0, 0] * x + to_face[0, 1] * y, to_face[1, 0] * x + to_face[1, 1] * y
        inside = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))  # (H, W), distance from the edge
        if inside.max() < 0:
            continue
        ramp = np.clip((inside / feather).astype(np.float32), 0, 1) if feather else (inside >= 0)
        ramp = np.minimum(ramp, np.minimum(sharp_x[left:right], sharp_y[top:bottom]), dtype=np.float32)
        origin = to_face @ (np.array([left, top]) - quad[0])
        size = (right - left, bottom - top)
        x0, y0 = max(left - reach, 0), max(top - reach, 0)
        end = min(right + reach, photo.width), min(bottom + reach, photo.height)
        source = np.asarray(crop.photo.crop((x0, y0, *end)))
        rows, columns = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
        kept = band = source[rows, columns]
        if moves:
            move = _sample(cv2, flow, to_face, origin, size, cv2.INTER_LINEAR)
            move += here[rows, columns]
            kept = cv2.remap(source, move, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        pasted = _times(cv2, kept.astype(np.float32), _sample(cv2, keep, to_face, origin, size, method))
        pasted += _sample(cv2, drawn, to_face, origin, size, method)
        if ramp.min() < 1:
            mask = ramp * ramp * (3 - 2 * ramp)
            pasted = cv2.blendLinear(pasted, band.astype(np.float32), mask, 1 - mask)
        photo.paste(Image.fromarray(cv2.add(pasted, 0, dtype=cv2.CV_8U)), (left, top))  # rounds and clips
    return photo


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as e:
        raise MissingDependencyError(
            f"`paste_back` needs OpenCV, which cannot be imported ({e}). "
            "Install it with: pip install opencv-python-headless"
        ) from e
    return cv2


def _fit(layers: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Resize a picture of the face to (width, height) without aliasing."""
    width, height = size.tolist()
    if (height, width) == layers.shape[:2]:
        return layers
    method = Image.Resampling.LANCZOS if width < layers.shape[1] else Image.Resampling.BICUBIC
    planes = [Image.fromarray(layers[..., i]).resize((width, height), method) for i in range(layers.shape[2])]
    return np.dstack([np.asarray(plane) for plane in planes])


def _times(cv2: Any, x: np.ndarray, share: np.ndarray) -> np.ndarray:
    return cv2.multiply(x, cv2.merge([share] * 3))  # twice as fast as numpy


def _sample(
    cv2: Any, plane: np.ndarray, to_face: np.ndarray, origin: np.ndarray, size: tuple[int, int], method: int
) -> np.ndarray:
    """Sample a picture of the face at `size` pixels of the photo, of which the first lies at `origin` in the face."""
    affine = np.column_stack([to_face, origin]) * np.array(plane.shape[1::-1])[:, None]
    affine[:, 2] -= 0.5  # the centre of the face's first pixel
    return cv2.warpAffine(plane, affine, size, flags=method | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)


def _blur(cv2: Any, x: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _resize(cv2: Any, x: np.ndarray, size: int) -> np.ndarray:
    if x.shape[:2] == (size, size):
        return x
    return cv2.resize(x, (size, size), interpolation=cv2.INTER_CUBIC if max(x.shape) < size else cv2.INTER_AREA)


def _grey(cv2: Any, x: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)


def _places(cv2: Any, flow: np.ndarray, size: int) -> np.ndarray:
    """Say in pixels of a picture where each pixel comes from; the flow is in fractions of it."""
    line = np.arange(size, dtype=np.float32)
    places = cv2.resize(flow, (size, size)) * np.float32(size)
    places[..., 0] += line
    places[..., 1] += line[:, None]
    return places


def _moved(cv2: Any, x: np.ndarray, places: np.ndarray) -> np.ndarray:
    return cv2.remap(x, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _motion(cv2: Any, edited: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Find for each place of the edited face where it was before, (S, S, 2), (x, y) in fractions of the crop."""
    size, sigma = _FLOW_SIZE, _SMOOTH * _FLOW_SIZE
    after, then = (_resize(cv2, x, size) for x in (edited, before))
    grey = [_grey(cv2, np.clip(x, 0, 255).astype(np.uint8)) for x in (after, then)]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow, back = (search.calc(a, b, None) / size for a, b in (grey, grey[::-1]))
    # Believe motion that leads back to where it began, and as far as it explains the change.
    places = _places(cv2, flow, size)
    error = np.square(flow + _moved(cv2, back, places)).sum(2)
    weight = np.exp(-error / (2 * _MISMATCH**2))
    errors = (after - x for x in (then, _moved(cv2, then, places)))
    change, left = (_blur(cv2, np.einsum("hwc,hwc->hw", x, x) / 3, sigma) for x in errors)
    weight *= np.clip((change - left) / (change + _NOISE**2), 0, 1)
    flow = _blur(cv2, flow * weight[..., None], sigma) / (_blur(cv2, weight, sigma) + _DOUBT)[..., None]
    place = (np.arange(size, dtype=np.float32) + 0.5) / size
    ramp = np.clip(np.minimum(place, 1 - place) / _RIM, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    flow *= (ramp[:, None] * ramp)[..., None]
    power = (np.square(flow).sum(2)[..., None] * max(edited.shape) ** 2) ** 2
    return flow * (power / (power + _TINY**4))


def _follow(
    cv2: Any, edited: np.ndarray, before: np.ndarray, target: np.ndarray, flow: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find how much of the moved photo is kept, (T, T), and what is added to it, (T, T, 3)."""
    side = max(edited.shape)  # a picture that is not square is stretched to one
    size, small = max(side, len(flow)), _MAP_SIZE
    pixel, part = size / side, small / side  # the generator's pixel in the large and the small pictures
    after, then, photo = (_resize(cv2, x, size) for x in (edited, before, target))
    moved = _moved(cv2, then, _places(cv2, flow, size))
    change = after - moved
    low = _blur(cv2, change, _FINE * pixel)
    # The generator's finest detail counts as far as it is the photo's.
    fine = (x - _blur(cv2, x, _FINE * pixel) for x in (_grey(cv2, photo), _grey(cv2, then)))
    detail = _moved(cv2, _alike(cv2, _WINDOW * pixel, size // 2, *fine), _places(cv2, flow, size // 2))
    trust = cv2.resize(detail, (size, size))
    drawn = cv2.blendLinear(change, low, trust, 1 - trust)
    # So do whole features where they move: drawn elsewhere than in the photo, they leave a second edge.
    new, old, photo, then, detail = (_resize(cv2, x, small) for x in (after, moved, photo, then, detail))
    places, sigma = _places(cv2, flow, small), _FEATURE * small
    bands = (_blur(cv2, x, _FINE * part) - _blur(cv2, x, sigma) for x in (_grey(cv2, photo), _grey(cv2, then)))
    known = _moved(cv2, _alike(cv2, _AREA * small, small, *bands), places)
    moves = _resize(cv2, np.hypot(flow[..., 0], flow[..., 1]), small) / _FAR
    gain = 1 - (1 - known) * np.clip(moves, 0, 1)
    # So do colours around them, such as those of the background, as far as the generator drew the photo's.
    tone = _moved(cv2, photo - then, places)
    off, base = (_blur(cv2, x, sigma) for x in (tone, new - old))
    off = np.square(off - _grey(cv2, off)[..., None]).sum(2)
    tint = base - _grey(cv2, base)[..., None]
    doubt = np.clip(_blur(cv2, moves, _AROUND * small), 0, 1) * off / (off + _TINT**2)
    base = (1 - gain)[..., None] * base - doubt[..., None] * tint
    # Where the edited face has another structure than the moved one, such as teeth, the photo's detail has no place.
    # There the generator's picture replaces it, in the photo's colours, if it draws this photo well.
    x, y = _grey(cv2, new), _grey(cv2, old)
    mean_x, mean_y, xx, yy, xy = (_blur(cv2, i, _STRUCTURE * small) for i in (x, y, x * x, y * y, x * y))
    spread = np.sqrt(np.maximum(xx - mean_x**2, 0) * np.maximum(yy - mean_y**2, 0))
    alike = (xy - mean_x * mean_y + _CONTRAST**2) / (spread + _CONTRAST**2)
    lost = _blur(cv2, np.clip((0.7 - alike) / 0.4, 0, 1), _SOFT * small) * np.clip((detail - 0.3) / 0.4, 0, 1)
    base += lost[..., None] * (_blur(cv2, tone, _WINDOW * part) - base)
    gain, lost, base = (cv2.resize(x, (size, size)) for x in (gain * (1 - lost), lost, base))
    drawn = _times(cv2, drawn, gain)
    drawn += _times(cv2, after, lost)
    drawn += base
    return 1 - lost, drawn


def _alike(cv2: Any, sigma: float, size: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare details of two pictures as SSIM compares structure, in windows: (size, size), in [0, 1]."""
    both, power = (
        _blur(cv2, _resize(cv2, x, size), sigma * size / len(a)) + _FAINT**2 for x in (2 * a * b, a * a + b * b)
    )
    return np.clip(both / power, 0, 1)


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
