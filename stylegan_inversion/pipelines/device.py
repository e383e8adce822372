"""Where networks run."""

import torch


def find_device(name: torch.device | str | int | None) -> torch.device:
    """Check a device. "auto" is the best there is, `None` the CPU.

    Raises:
        ValueError: If this machine, or this build of PyTorch, has no such device.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in here.items() if available)
    try:
        device = torch.device("cpu" if name is None else name)
    except RuntimeError as e:
        raise ValueError(f"`device` must be auto, {', '.join(here)} or such as cuda:1, got {name!r}.") from e
    if not here.get(device.type, True):
        raise ValueError(f"`device` is {name!r}, which this machine or this build of PyTorch lacks. Take 'cpu'.")
    return device
