"""``verify --device``: a port's modules on a GPU, say, and whether that device computes with fewer digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from porter.errors import ParityError
from porter.models.build import chosen_device
from porter.parity.candidates.candidate import Candidate
from porter.parity.verdict import Cause, Verdict

TF32 = "TF32 convolutions: torch.backends.cudnn.allow_tf32 = False"


def on_device(candidate: Candidate, name: str) -> Candidate:
    """``candidate`` on the device ``name``; its float64 stays on the CPU where the device has none, as mps.

    Raises PorterError if this machine lacks the device, or the candidate is no module.
    """
    device = chosen_device(name)
    if candidate.modules is None or candidate.deployed:
        raise ParityError(f"{candidate.name or 'the port'}: only a module in PyTorch runs on a device of PyTorch's")
    single, exact = candidate.modules
    single.to(device)
    with suppress(TypeError):  # "the MPS framework doesn't support float64"
        exact.to(device)
    return replace(candidate, name=f"{candidate.name or 'the port'} on {name}", device=device.type)


def tf32_cause(verdict: Verdict, again: Callable[[], Verdict]) -> list[Cause]:
    """The cause of lost precision, if ``again``, the same comparison without TF32, finds none lost."""
    if not torch.backends.cudnn.allow_tf32 or verdict.same_function is False or verdict.as_exact is not False:
        return []
    with _without_tf32():
        other = again()
    before, after = (max(row.port.largest for row in one.rows if row.port) for one in (verdict, other))
    return [Cause((TF32,), before, after, "float32's")] if other.as_exact else []


def reduced_precision(device: str) -> Iterator[str]:
    """The settings of PyTorch with which float32 on ``device`` is less exact."""
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        yield f"float32 products in fewer bits (torch.set_float32_matmul_precision is {precision!r})"
    if device == "cuda" and torch.backends.cudnn.allow_tf32:
        yield TF32


@contextmanager
def _without_tf32() -> Iterator[None]:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
