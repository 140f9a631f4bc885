"""timm's description of how images are made ready for a network."""

from __future__ import annotations

from typing import Any

from porter.mapping.schema import VariantMapping


def pretrained_cfg(mapping: VariantMapping, num_classes: int, channels: int | None = None) -> dict[str, Any]:
    """The keys that ``timm.data.resolve_data_config`` and a Hugging Face ``config.json`` read."""
    spec = mapping.input
    return {
        "architecture": mapping.timm or mapping.variant,
        "custom_load": False,
        "input_size": (channels or spec.channels, spec.size, spec.size),
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": spec.crop,
        "crop_mode": "center",
        "mean": tuple(spec.mean),
        "std": tuple(spec.std),
        "num_classes": num_classes,
        "pool_size": (7, 7),  # 224 / 32
        "first_conv": "conv_stem",
        "classifier": "classifier",
    }
