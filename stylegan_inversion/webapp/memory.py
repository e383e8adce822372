"""How much memory a result takes, and giving back what is free, so that many visitors fit into one machine."""

import ctypes
import sys

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import Crop


def size_of(output: InversionOutput) -> int:
    """Bytes that a result takes, about: its pictures, its codes, and the generators that are its own.

    Args:
        output: The result. Of generators that it shares with another result, each counts them.
    """
    pictures = [*output.images, *output.reconstructions]
    for crop in output.crops:
        pictures += [crop.image, crop.photo] if isinstance(crop, Crop) else []
    pixels = sum(image.width * image.height for image in {id(image): image for image in pictures}.values())
    base = None if output.base is None else output.base.generator
    own = {id(generator): generator for generator in output.generators if generator is not base}
    weights = sum(tensor.nbytes for generator in own.values() for tensor in generator.state_dict().values())
    return 3 * pixels + output.w_plus.nbytes + weights


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it for itself and can be told so (glibc).

    Pictures and tensors of many sizes leave gaps that it does not return on its own: an app that runs for days would
    seem to grow.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
