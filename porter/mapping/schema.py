"""What a mapping file may say, as typed values; docs/mapping-format.md explains each key."""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct, field

from porter.mapping.axes import Layout
from porter.network.network import Architecture
from porter.network.spec import BlockKind


class Classes(Struct, frozen=True, forbid_unknown_fields=True):
    """Outputs of the classifier: ``background`` is dropped where there are ``background_of`` of them."""

    count: int | None = None
    background: int | None = None
    background_of: int | None = None


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One variable (or batch norm) -> one state-dict entry (or module).

    ``shape``, ``absorbs_gate`` and ``gate_shift`` are read from files for version 0.1 and not used: the network has
    them.
    """

    source: str = field(name="from")
    target: str = field(name="to")
    axes: Layout = field(name="layout")
    shape: list[int | str] | None = None
    absorbs_gate: bool = False
    gate_shift: bool = False


# The word ``squeeze_excite`` among a block's rules stands for the rules of that section
BlockRule = Rule | Literal["squeeze_excite"]
# Sections of rules: for blocks of each kind, and around them; those of heads are theirs
SECTIONS = ("stem", *get_args(BlockKind), "squeeze_excite", "last", "head", "classifier")


class Ignored(Struct, frozen=True, forbid_unknown_fields=True):
    """Variables that no rule needs: a shell pattern, and why."""

    pattern: str
    reason: str


class Keras(Struct, frozen=True, forbid_unknown_fields=True):
    """The function of keras.applications that builds the network, and its arguments."""

    model: str
    alpha: float
    minimalistic: bool


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """How the released weights were trained, for model cards: RMSProp on ImageNet, up to ``step``."""

    lr: float
    dropout: float
    weight_decay: float
    momentum: float
    batch_size: int
    rmsprop_decay: float
    resources: str
    step: int | None = None


class VariantMapping(Architecture, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole mapping file with its bases merged in.

    ``rules`` are by section, in the order of computation. ``names`` renames the ``from`` of rules, ``variables`` single
    variables (by full name, wherever they lie);
    ``outputs`` tells, by section, what the source calls modules' outputs. A ``top`` of ``none`` is a backbone: what is
    not of the network is left where it is.
    """

    variant: str
    scope: str
    classes: Classes
    batch_norm: dict[str, str]
    rules: dict[str, list[BlockRule]]
    ignore: list[Ignored]
    top: Literal["required", "optional", "none"] = "required"
    names: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it
    outputs: dict[str, dict[str, list[str]]] = {}  # noqa: RUF012
    variables: dict[str, str] = {}  # noqa: RUF012
    timm: str | None = None
    keras: Keras | None = None
    url: str | None = None
    training: Training | None = None
