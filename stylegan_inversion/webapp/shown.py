"""How results are shown on a page: their sizes, and what they have to be marked as."""

import dataclasses

from PIL import Image

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.webapp.marking import Kind

SHOWN_FACE, SHOWN_PHOTO = 512, 1024  # pixels a side on the page, at least and at most; downloads are not resized


def enlarge(image: Image.Image) -> Image.Image:
    """A face as large as the page shows it."""
    size = (SHOWN_FACE, SHOWN_FACE)
    return image if image.width >= SHOWN_FACE else image.resize(size, Image.Resampling.BICUBIC)


def shown_crop(crop: Crop) -> Crop:
    """A crop with its photo as small as the page shows it."""
    scale = min(SHOWN_PHOTO / max(crop.photo.size), 1.0)
    if scale == 1:
        return crop
    size = (round(crop.photo.width * scale), round(crop.photo.height * scale))
    small = crop.photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    quad = None if crop.quad is None else (crop.quad + 0.5) * scale - 0.5
    return dataclasses.replace(crop, photo=small, quad=quad)


def is_drawn(out: InversionOutput) -> bool:
    """Whether what stands in for its photo is a generator's picture."""
    return "seed" in out.reports[0]


def is_tuned(out: InversionOutput) -> bool:
    """Whether PTI made a generator for it."""
    return out.base is not None and out.generator is not out.base.generator


def kind_of(out: InversionOutput) -> Kind:
    """How a picture has to be marked."""
    return "generated" if "truncation" in out.reports[0] else "edited"
