"""The outcome of a parity check, as a value."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from porter.parity.compare import Row

# Max |ours - reference| over the layer's scale. Two float32 implementations sum in different orders;
# in float64 what remains is rounding.
TOLERANCES = {"float32": {"logits": 1e-5, "endpoints": 2e-5}, "float64": {"logits": 1e-12, "endpoints": 1e-12}}


@dataclass
class Verdict:
    """Every compared endpoint on every sample, agreement of the top classes, and what was compared."""

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

    @property
    def passed(self) -> bool:
        """All endpoints within tolerance, and there were some."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def worst_rows(self) -> list[Row]:
        """One row an endpoint, of the sample where it is furthest off, in the order of computation."""
        worst: dict[str, Row] = {}
        for row in self.rows:
            known = worst.get(row.endpoint)
            if known is None or not row.max_rel <= known.max_rel:
                worst[row.endpoint] = row
        return list(worst.values())

    def first_divergence(self) -> Row | None:
        """The first endpoint, in the order of computation, that is out of tolerance."""
        return next((row for row in self.worst_rows() if not row.passed), None)

    def failure(self) -> str | None:
        """What is wrong, in words; None on parity."""
        first = self.first_divergence()
        if first is None:
            return None if self.rows else f"no endpoint in common with {self.reference}"
        return f"no parity with {self.reference}: first differs at {first.endpoint}, {first.max_rel:.1e} of its scale"

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        first = self.first_divergence()
        return {
            **{key: value for key, value in asdict(self).items() if key != "rows"},
            "passed": self.passed,
            "first_divergence": first.endpoint if first else None,
            "rows": [_finite(row) | {"passed": row.passed} for row in self.rows],
        }


def _finite(row: Row) -> dict[str, Any]:
    """The row's values; JSON has no NaN, so None stands for it."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row._asdict().items()
    }
