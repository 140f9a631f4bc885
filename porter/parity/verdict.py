"""The outcome of a parity check, as a value: two answers for every endpoint."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from porter.parity.compare import SAME_FUNCTION, Row
from porter.parity.references.reference import Precision
from porter.text import listed


class Cause(NamedTuple):
    """Known mistakes that explain a difference; ``names`` are from porter.parity.diagnosis.

    ``before`` and ``after``: distance of the logits, or of other ``values``, over their scale, without and with the
    same mistakes in our network; None if nothing was run, as the weights show the mistakes.
    """

    names: tuple[str, ...]
    before: float | None = None
    after: float | None = None
    values: str = "the logits'"

    @property
    def what(self) -> str:
        """The mistakes in words."""
        return " and ".join(filter(None, (", ".join(self.names[:-1]), self.names[-1])))


@dataclass
class Verdict:
    """Every compared endpoint on every sample, agreement of the top classes, and what was compared.

    ``artifact``: what was checked, None for the port in memory. ``precision``: of the reference's values. ``missing``:
    endpoints that the reference does not hold. ``unmatched``: endpoints for which a foreign port has no operation of
    these values. ``changed``: state-dict entries that differ from the checkpoint's; ``variables``: their names in the
    checkpoint. ``causes`` explain a failure, if they were looked for. ``fake_quant``: True if 8 bits were compared.
    ``dequantized``: True if the source has 8 bits and its float network was compared. ``received`` says which values
    each side got. ``returned``: what a foreign port returns of the right values, if it changes them in a known way.
    ``right_up_to``: the last endpoint that it computes, if it returns something else. ``remarks``: what is odd about
    its run. ``untried``: mistakes that were not looked for, for want of time. ``assumed`` are facts that neither the
    source nor the reference states (porter.mapping.stated.FACTS). ``training``: True if a step of training was
    compared; rows are then its values.
    """

    variant: str
    checkpoint: str
    artifact: str | None
    reference: str
    dtype: str
    environment: dict[str, str]
    digests: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    images: int = 0
    top1_agree: int = 0
    top5_agree: int = 0
    fake_quant: bool = False
    dequantized: bool = False
    precision: Precision = "float64"
    rounded_weights: bool = False
    missing: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)
    received: str = ""
    returned: list[str] = field(default_factory=list)
    right_up_to: str = ""
    remarks: list[str] = field(default_factory=list)
    untried: str = ""
    assumed: list[str] = field(default_factory=list)
    training: bool = False

    @property
    def passed(self) -> bool:
        """True if there are endpoints, every question at each is answered yes, and no weight was changed."""
        return bool(self.rows) and not self.changed and all(row.passed for row in self.rows)

    @property
    def same_function(self) -> bool | None:
        """The answer to the first question; None if it was not asked."""
        return _all([row.same_function for row in self.rows], self.changed)

    @property
    def as_exact(self) -> bool | None:
        """The answer to the second question; None if it was not asked."""
        return _all([row.as_exact for row in self.rows], [])

    def worst_rows(self) -> list[Row]:
        """One row per endpoint, from the sample where it is furthest off, in the order of computation."""
        worst: dict[str, Row] = {}
        for row in self.rows:
            known = worst.get(row.endpoint)
            if known is None or row.excess > known.excess:
                worst[row.endpoint] = row
        return list(worst.values())

    def furthest(self) -> Row:
        """The row closest to its limits, or furthest beyond them."""
        return max(self.rows, key=lambda row: row.excess)

    def first_divergence(self) -> Row | None:
        """The first endpoint, in the order of computation, that fails."""
        return next((row for row in self.worst_rows() if not row.passed), None)

    def function_distance(self) -> float | None:
        """The largest float64 distance over the scale; NaN if any is NaN."""
        found = [row.function for row in self.rows if row.function is not None]
        return next((value for value in found if value != value), max(found, default=None))

    def noise_ratio(self) -> float | None:
        """The median over endpoints of the port's float32 error over the reference's."""
        ratios = [ratio for row in self.rows if (ratio := row.noise_ratio) is not None]
        return statistics.median(ratios) if ratios else None

    def sentence(self) -> str:
        """Both answers in one sentence; only the first if it is another function."""
        if self.returned and not self.passed:
            return f"the network is right; what it returns is {', or '.join(self.returned)}"
        rounding = "" if self.same_function is False else self._about_rounding()
        said = "; ".join(filter(None, (self._about_function(), rounding))) or "nothing compared"
        return f"in training, {said}" if self.training else said

    def _about_function(self) -> str:
        distance = self.function_distance()
        if distance is None:
            return ""
        if self.fake_quant:
            return "the same levels of 8 bits" if self.same_function else "other levels of 8 bits"
        if self.same_function:
            how = ""
            if self.precision == "float32":
                how = " as far as a float32 record tells"
            elif self.rounded_weights and distance > SAME_FUNCTION:
                how = " but for the rounding of its weights"
            return f"same function{how} ({distance:.1e})"
        first = next((row for row in self.worst_rows() if row.same_function is False), None)
        if first is None:
            return f"other weights ({listed(self.changed, 3)})"
        apart = f"({first.function:.1e} of its scale)"
        if self.right_up_to:
            return f"the network is right up to {self.right_up_to}; what it returns is something else {apart}"
        return f"another function, from {first.endpoint} on {apart}"

    def _about_rounding(self) -> str:
        ratio = self.noise_ratio()
        if ratio is None:
            return ""
        if self.as_exact:
            return f"float32 as exact as {self._whose()} ({ratio:.1f} x its rounding)"
        first = next(row for row in self.worst_rows() if row.as_exact is False)
        assert first.port is not None
        assert first.reference is not None
        return (
            f"float32 less exact than {self._whose()}, from {first.endpoint} on "
            f"({first.port.largest:.1e} of its scale, {self._whose()} {first.reference.largest:.1e})"
        )

    def _whose(self) -> str:
        return "the interpreter's" if self.reference.startswith("interpreter") else "TensorFlow's"

    def failure(self) -> str | None:
        """What is wrong, in words; None on parity."""
        if self.passed:
            return None
        if not self.rows:
            return f"no endpoint in common with {self.reference}"
        return f"no parity with {self.reference}: {self.sentence()}"

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        first = self.first_divergence()
        distance = self.function_distance()
        return {
            **{key: value for key, value in asdict(self).items() if key not in ("rows", "causes")},
            "passed": self.passed,
            "same_function": self.same_function,
            "as_exact": self.as_exact,
            "sentence": self.sentence(),
            "function_distance": distance if distance == distance else None,
            "noise_ratio": self.noise_ratio(),
            "first_divergence": first.endpoint if first else None,
            "causes": [cause._asdict() for cause in self.causes],
            "rows": [row.as_json() for row in self.rows],
        }


def _all(answers: list[bool | None], against: list[str]) -> bool | None:
    if True not in answers and False not in answers:
        return None
    return False not in answers and not against
