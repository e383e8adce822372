"""Put an edited face back into the photo it was cut from: the inverse of `align`, with a soft seam.

The photo has detail that the generator cannot draw, and an edit moves it. Where it goes is seen in the generator's own
two pictures, before and after the edit: dense inverse search (Kroeger et al. 2016, arXiv:1603.03590) finds the motion
between them. Only motion that explains the change is believed; it is spread smoothly over the face, the photo moves
along, and what the motion does not explain is added. Lengths are in pixels of the generator or fractions of the crop.
"""

import importlib
import itertools
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.preprocessing.align import Crop, rectangle, shrink_factor


class _OpenCV:
    """The module cv2, loaded when first needed: it takes half a second, and builds of it are broken in many ways."""

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(importlib.import_module("cv2"), name)
        except Exception as e:
            advice = "Install it with: pip install opencv-python-headless"
            raise MissingDependencyError(f"`paste_back` needs OpenCV, which cannot be imported ({e}). {advice}") from e


cv2: Any = _OpenCV()  # its annotations do not know NumPy's arrays

Detail = Literal["move", "add", "none"]
"""What becomes of the photo's own detail, see `paste_back`."""

_TILE = 256  # pixels a side of the photo's tiles, which fit into the processor's cache
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

_BAND = 128  # rows that are worked on at once: they fit into the processor's cache

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
        MissingDependencyError: If OpenCV cannot be imported.
    """
    width, height = crop.image.size
    if image.mode != "RGB" or abs(image.width * height - image.height * width) >= max(width, height):
        what = f"RGB, in the shape of the crop ({width} x {height})"
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
    photo, quad = crop.photo.copy(), crop.quad
    if quad is None:
        quad, feather = rectangle(0, 0, photo.width, photo.height), 0.0
    sharp_x, sharp_y = np.ones(photo.width, np.float32), np.ones((photo.height, 1), np.float32)
    axes = np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1)  # (u, v), 0 to 1 across the face -> photo (x, y)
    sides = np.maximum(np.rint(np.hypot(*axes)), 1).astype(int)
    edited = np.asarray(image)
    # The pasted picture is the photo, moved by the flow, times the last of four layers, plus the other three.
    flow, method = np.zeros((1, 1, 2), np.float32), cv2.INTER_CUBIC
    if reference is None or detail == "none":
        layers = cv2.merge([np.float32(edited), np.zeros(edited.shape[:2], np.float32)])
        if not crop.is_central:
            sharp_x, sharp_y = _sharpness(crop, quad)
    elif np.array_equal(before := np.asarray(reference), edited):
        return photo
    elif detail == "add":
        layers = cv2.merge([np.float32(edited) - before, np.ones(edited.shape[:2], np.float32)])
    else:
        flow, layers = _follow(edited, before, np.asarray(crop.image))
        flow, method = flow @ axes.T.astype(np.float32), cv2.INTER_LINEAR  # faster, and the layers are fine enough
    moves = flow.any()
    largest = max(layers.shape[:2])
    shape = np.minimum(sides, largest if moves else max(largest, _MAX_RESIZED))
    if not moves or (sides < 0.8 * np.array(layers.shape[1::-1])).any():  # otherwise sampling hardly aliases
        layers = _fit(layers, shape)
    to_face = np.linalg.inv(axes)
    low = np.maximum(np.ceil(quad.min(0)), 0).astype(int).tolist()
    high = np.minimum(np.floor(quad.max(0)) + 1, photo.size).astype(int).tolist()
    if low[0] >= high[0] or low[1] >= high[1]:
        return photo
    reach = 3 + int(np.ceil(np.abs(flow).max()))  # pixels of the photo around the face that may move into it
    begin, end = [max(x - reach, 0) for x in low], [min(x + reach, y) for x, y in zip(high, photo.size)]
    source = np.asarray(photo.crop((*begin, *end)))
    result = source[low[1] - begin[1] :, low[0] - begin[0] :][: high[1] - low[1], : high[0] - low[0]].copy()
    step = max(int(sides.min() / len(flow)), 1)  # pixels of the photo; the flow is no finer
    for left, top in itertools.product(range(low[0], high[0], _TILE), range(low[1], high[1], _TILE)):
        right, bottom = min(left + _TILE, high[0]), min(top + _TILE, high[1])
        x, y = np.arange(left, right) - quad[0, 0], np.arange(top, bottom)[:, None] - quad[0, 1]
        sharp = np.minimum(sharp_x[left:right], sharp_y[top:bottom])
        if seam := _inside(to_face, x[[0, -1]], y[[0, -1]]).min() < feather or sharp.min() < 1:  # the corners tell
            inside = _inside(to_face, x, y)
            if inside.max() < 0:
                continue
            ramp = np.clip(inside / feather, 0, 1) if feather else (inside >= 0)
            ramp = np.float32(np.minimum(ramp, sharp))
        origin = to_face @ (np.array([left, top]) - quad[0])
        size = (right - left, bottom - top)
        kept = old = result[top - low[1] : bottom - low[1], left - low[0] : right - low[0]]
        if moves:
            start, wide = origin - to_face @ np.full(2, (step + 1) / 2), (size[0] // step + 3, size[1] // step + 3)
            move = _sample(flow, to_face * step, start, wide, cv2.INTER_LINEAR)
            move = cv2.resize(move, None, fx=step, fy=step)[step:, step:][: size[1], : size[0]]
            if np.abs(move).max() > 1 / 64:  # less is nothing to OpenCV
                move = cv2.add(move + _grid(_TILE)[: size[1], : size[0]], (left - begin[0], top - begin[1], 0, 0))
                kept = cv2.remap(source, move, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        sampled = _sample(layers, to_face, origin, size, method)
        keep, drawn = cv2.extractChannel(sampled, 3), cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB)
        if keep.min() < 0.999:
            kept = _times(kept, keep)
        pasted = cv2.add(kept, drawn, dtype=cv2.CV_8U)  # rounds and clips
        if seam:
            mask = ramp * ramp * (3 - 2 * ramp)
            pasted = cv2.blendLinear(pasted, old, mask, 1 - mask)
        old[...] = pasted
    photo.paste(Image.fromarray(result), tuple(low))
    return photo


def _inside(to_face: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure how far points lie inside the face's edge, relative to its side, (H, W)."""
    u, v = (np.abs(row[0] * x + row[1] * y - 0.5) for row in to_face)
    return 0.5 - np.maximum(u, v)


def _fit(layers: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Resize a picture of the face to (width, height) without aliasing."""
    width, height = size.tolist()
    if (height, width) == layers.shape[:2]:
        return layers
    method = Image.Resampling.LANCZOS if width < layers.shape[1] else Image.Resampling.BICUBIC
    planes = [Image.fromarray(layers[..., i]).resize((width, height), method) for i in range(layers.shape[2])]
    return np.dstack([np.asarray(plane) for plane in planes])


def _times(x: np.ndarray, share: np.ndarray) -> np.ndarray:
    return cv2.multiply(x, cv2.merge([share] * 3), dtype=cv2.CV_32F)  # twice as fast as numpy


def _power(x: np.ndarray) -> np.ndarray:
    """Sum the squares of the channels."""
    return cv2.transform(x * x, np.ones((1, x.shape[2])))


def _sample(
    plane: np.ndarray, to_face: np.ndarray, origin: np.ndarray, size: tuple[int, int], method: int
) -> np.ndarray:
    """Sample a picture of the face at `size` pixels of the photo, of which the first lies at `origin` in the face."""
    affine = np.column_stack([to_face, origin]) * np.array(plane.shape[1::-1])[:, None]
    affine[:, 2] -= 0.5  # the centre of the face's first pixel
    return cv2.warpAffine(plane, affine, size, flags=method | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    if sigma < 5 or any(side % 2 for side in x.shape[:2]):
        return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    half = cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # nearly the same, and much faster
    return cv2.resize(_blur(half, sigma / 2), x.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def _resize(x: np.ndarray, size: int) -> np.ndarray:
    if x.shape[:2] == (size, size):
        return x
    shape = np.array(x.shape[:2])
    method = cv2.INTER_CUBIC if shape.max() < size else cv2.INTER_AREA
    if shape.min() >= 2 * size and not (shape % 2).any():
        x = cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.resize(np.float32(x) if x.shape[:2] != (size, size) else x, (size, size), interpolation=method)


def _grey(x: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)


@lru_cache(maxsize=8)
def _grid(size: int) -> np.ndarray:
    """Say where each pixel of a square lies, (x, y): (S, S, 2)."""
    return np.dstack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2))


def _moved(x: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Move a picture by a flow, which is in fractions of it."""
    size = len(x)
    places = cv2.resize(flow * np.float32(size), (size, size)) + _grid(size)
    return cv2.remap(x, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _motion(after: np.ndarray, then: np.ndarray, resolution: int) -> np.ndarray:
    """Find for each place of the edited face where it was before, (S, S, 2), (x, y) in fractions of the crop."""
    size, sigma = len(after), _SMOOTH * len(after)
    grey = [_grey(np.clip(x, 0, 255).astype(np.uint8)) for x in (after, then)]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow, back = (search.calc(a, b, None) / size for a, b in (grey, grey[::-1]))
    # Believe motion that leads back to where it began, and as far as it explains the change.
    weight = np.exp(-_power(flow + _moved(back, flow)) / (2 * _MISMATCH**2))
    errors = (after - x for x in (then, _moved(then, flow)))
    change, left = (_blur(_power(x) / 3, sigma) for x in errors)
    weight *= np.clip((change - left) / (change + _NOISE**2), 0, 1)
    flow = _blur(flow * weight[..., None], sigma) / (_blur(weight, sigma) + _DOUBT)[..., None]
    place = (np.arange(size, dtype=np.float32) + 0.5) / size
    ramp = np.clip(np.minimum(place, 1 - place) / _RIM, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    flow *= (ramp[:, None] * ramp)[..., None]
    power = (_power(flow)[..., None] * resolution**2) ** 2
    return flow * (power / (power + _TINY**4))


def _follow(edited: np.ndarray, before: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find how the photo moves, (S, S, 2), what is added to it and, last, how much of it is kept, (T, T, 4)."""
    middle = [np.float32(_resize(x, _FLOW_SIZE)) for x in (edited, before, target)]
    side = max(edited.shape)  # a picture that is not square is stretched to one
    flow = _motion(middle[0], middle[1], side)
    size, small = max(side, _FLOW_SIZE), _MAP_SIZE
    pixel, part = size / side, small / side  # the generator's pixel in the large and the small pictures
    after, then, photo = (_resize(x, size) for x in (edited, before, target))
    # The generator's finest detail counts as far as it is the photo's.
    greys = [np.float32(_grey(x)) for x in (photo, then)]
    fine = (x - _blur(x, _FINE * pixel) for x in greys)
    detail = _moved(_alike(_WINDOW * pixel, size // 2, *fine), flow)
    # So do whole features where they move: drawn elsewhere than in the photo, they leave a second edge.
    old = _resize(_moved(middle[1], flow), small)
    new, base, face, known = (_resize(x, small) for x in (*middle, detail))
    sigma = _FEATURE * small
    bands = (_blur(x, _FINE * part) - _blur(x, sigma) for x in (_grey(face), _grey(base)))
    alike = _moved(_alike(_AREA * small, small, *bands), flow)
    moves = _resize(np.hypot(flow[..., 0], flow[..., 1]), small) / _FAR
    gain = 1 - (1 - alike) * np.clip(moves, 0, 1)
    # So do colours around them, such as those of the background, as far as the generator drew the photo's.
    tone = _moved(face - base, flow)
    off, base = (_blur(x, sigma) for x in (tone, new - old))
    off = _power(off - _grey(off)[..., None])
    tint = base - _grey(base)[..., None]
    doubt = np.clip(_blur(moves, _AROUND * small), 0, 1) * off / (off + _TINT**2)
    base = (1 - gain)[..., None] * base - doubt[..., None] * tint
    # Where the edited face has another structure than the moved one, such as teeth, the photo's detail has no place.
    # There the generator's picture replaces it, in the photo's colours, if it draws this photo well.
    x, y = _grey(new), _grey(old)
    mean_x, mean_y, xx, yy, xy = (_blur(i, _STRUCTURE * small) for i in (x, y, x * x, y * y, x * y))
    spread = np.sqrt(np.maximum(xx - mean_x**2, 0) * np.maximum(yy - mean_y**2, 0))
    alike = (xy - mean_x * mean_y + _CONTRAST**2) / (spread + _CONTRAST**2)
    lost = _blur(np.clip((0.7 - alike) / 0.4, 0, 1), _SOFT * small) * np.clip((known - 0.3) / 0.4, 0, 1)
    base += lost[..., None] * (_blur(tone, _WINDOW * part) - base)
    maps = (flow * np.float32(size), detail, gain * (1 - lost), lost, cv2.merge([base, 1 - lost]))
    tall = [cv2.resize(x, (x.shape[1], size)) for x in maps]
    layers, halo = np.empty((size, size, 4), np.float32), int(4 * _FINE * pixel) + 2  # rows that a blur reaches
    for top in range(0, size, _BAND):
        start, stop = max(top - halo, 0), min(top + _BAND + halo, size)
        places, trust, gain, lost, layer = (cv2.resize(x[start:stop], (size, stop - start)) for x in tall)
        places += _grid(size)[start:stop]
        moved = cv2.remap(then, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        change = cv2.subtract(after[start:stop], moved, dtype=cv2.CV_32F)
        drawn = _times(cv2.blendLinear(change, _blur(change, _FINE * pixel), trust, 1 - trust), gain)
        if lost.max() > 1e-3:
            drawn += _times(after[start:stop], lost)
        layer += cv2.merge([drawn, np.zeros_like(trust)])
        layers[top : top + _BAND] = layer[top - start :][:_BAND]
    return flow, layers


def _alike(sigma: float, size: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare details of two pictures as SSIM compares structure, in windows: (size, size), in [0, 1]."""
    both, power = (_blur(_resize(x, size), sigma * size / len(a)) + _FAINT**2 for x in (2 * a * b, a * a + b * b))
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
