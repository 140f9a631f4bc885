"""The content of a mapping file, as typed values; docs/mapping-format.md explains each key."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct, field

from porter.mapping.axes import Layout
from porter.network.network import Architecture
from porter.network.spec import BlockKind

MOST_PARTS = 16  # of a batch norm, and names that one output may have; ours have 4 and 2


class Classes(Struct, frozen=True, forbid_unknown_fields=True):
    """Outputs of the classifier. Class ``background`` is dropped if there are ``background_of`` of them."""

    count: int | None = None
    background: int | None = None
    background_of: int | None = None


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One variable (or batch norm) -> one state-dict entry (or module).

    Files of version 0.1 may have ``shape``, ``absorbs_gate`` and ``gate_shift``. They are ignored: the network has
    these facts.
    """

    source: str = field(name="from")
    target: str = field(name="to")
    axes: Layout = field(name="layout")
    shape: list[int | str] | None = None
    absorbs_gate: bool = False
    gate_shift: bool = False


# In a block, the word ``squeeze_excite`` stands for the rules of that section
BlockRule = Rule | Literal["squeeze_excite"]
# Sections of rules, besides those of heads
SECTIONS = ("stem", *get_args(BlockKind), "squeeze_excite", "last", "head", "classifier", "dense", "batch_norm")


class Ignored(Struct, frozen=True, forbid_unknown_fields=True):
    """Variables that no rule needs: a shell pattern, and the reason."""

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

    ``rules``: by section, in the order of computation. ``names`` renames the ``from`` of rules; ``variables`` renames
    single variables, by full name, and ``layouts`` are theirs where the rule has another. ``constants`` are entries of
    the state dict that the source leaves out, such as the scale of a batch norm without one. ``outputs``: by section,
    the source's names of modules' outputs. ``top: none`` makes it a backbone: variables outside the network are
    ignored.
    """

    variant: str
    scope: str
    classes: Classes
    batch_norm: Annotated[dict[str, str], Meta(max_length=MOST_PARTS)]
    rules: dict[str, list[BlockRule]]
    ignore: list[Ignored]
    top: Literal["required", "optional", "none"] = "required"
    names: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it
    outputs: dict[str, dict[str, Annotated[list[str], Meta(max_length=MOST_PARTS)]]] = {}  # noqa: RUF012
    variables: dict[str, str] = {}  # noqa: RUF012
    layouts: dict[str, Layout] = {}  # noqa: RUF012
    constants: dict[str, float] = {}  # noqa: RUF012
    timm: str | None = None
    keras: Keras | None = None
    url: str | None = None
    training: Training | None = None
