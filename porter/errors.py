"""Errors that a person caused or can mend; the CLI shows each as one line with exit code 2."""

from __future__ import annotations

from collections.abc import Sequence

from porter.text import printable


class PorterError(Exception):
    """Base of every expected error. The message names the file, the tensor and what to do.

    ``details`` are further offenders of the same kind, one per line. What in them would start a line or move the cursor
    is escaped: names come from files.
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        self.message, self.details = printable(message), [printable(detail) for detail in details]
        super().__init__("\n  ".join([self.message, *self.details]))

    def renamed(self, old: str, new: str) -> PorterError:
        """The same error with the path ``old`` named ``new``."""
        return type(self)(self.message.replace(old, new), [detail.replace(old, new) for detail in self.details])


class PorterNote(UserWarning):
    """A warning of what was taken for granted; the command prints it as a line."""


class CheckpointError(PorterError):
    """A checkpoint file is missing, damaged or of an unknown format."""


class MappingError(PorterError):
    """A mapping file is malformed, or does not fit the checkpoint."""


class ArtifactError(PorterError):
    """An artifact cannot be written, read or used."""


class ParityError(PorterError):
    """A parity check cannot be run (unlike a check that ran and failed, which is a verdict)."""


class NoParityError(PorterError):
    """A check ran and failed where only a port that passes may go on."""

    exit_code = 1
