"""Errors that a user can fix. The command prints one line and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from porter.text import printable

FEW = 20  # problems that an error lists


class Option(NamedTuple):
    """An argument that would help, with its value.

    ``force=True`` in Python is ``--force`` on the command line, ``fake_quant=False`` is ``--no-fake-quant``.
    """

    name: str
    value: str | bool = True


class PorterError(Exception):
    """Base of every expected error. The message names the file, the tensor and what to do.

    ``details``: further problems of the same kind, one per line; of many the first, and how many more. ``option``: the
    end of the message. Line breaks and cursor movements are escaped, as names come from files.
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = (), option: Option | None = None) -> None:
        if len(details) > FEW + 1:  # and not what it made before
            details = [*details[:FEW], f"and {len(details) - FEW} more"]
        self.message, self.details = printable(message), [printable(detail) for detail in details]
        self.option = option
        told = f" {option.name}={option.value!r}" if option else ""
        super().__init__("\n  ".join([self.message + told, *self.details]))

    def __reduce__(self) -> tuple[type[PorterError], tuple[str, list[str], Option | None]]:
        return type(self), (self.message, self.details, self.option)  # pickled by the pool of `release --all`

    def for_command(self) -> str:
        """The same text for the command line."""
        flag = ""
        if self.option is not None:
            no = "no-" if self.option.value is False else ""
            value = "" if isinstance(self.option.value, bool) else f" {self.option.value}"
            flag = f" --{no}{self.option.name.replace('_', '-')}{value}"
        return "\n  ".join([self.message + flag, *self.details])

    def renamed(self, old: str, new: str) -> PorterError:
        """The same error with the path ``old`` named ``new``."""
        details = [detail.replace(old, new) for detail in self.details]
        return type(self)(self.message.replace(old, new), details, self.option)


class PorterNote(UserWarning):
    """A warning about an assumption. The command prints it as one line."""


class CheckpointError(PorterError):
    """A checkpoint file is missing, damaged or of an unknown format."""


class MappingError(PorterError):
    """A mapping file is malformed, or does not fit the checkpoint."""


class NotTheNetworkError(MappingError):
    """A file states a function that the network of its variant cannot have."""


class ArtifactError(PorterError):
    """An artifact cannot be written, read or used."""


class ParityError(PorterError):
    """A parity check cannot run (a check that ran and failed is a verdict)."""


class NoParityError(PorterError):
    """A check ran and failed, and only a port with parity may continue."""

    exit_code = 1
