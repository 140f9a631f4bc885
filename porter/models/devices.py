"""Where a model runs."""

from __future__ import annotations

import torch

from porter.errors import PorterError


def chosen_device(name: str) -> torch.device:
    """The device ``name``: ``cpu``, ``cuda``, ``cuda:1``, ``mps``. Raises PorterError if this machine lacks it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PorterError(f"device {name!r}: not here ({str(error).splitlines()[0]}); use cpu") from error
    return device
