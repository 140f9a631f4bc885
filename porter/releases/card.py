"""The model card, and the configuration that timm reads from a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porter.artifacts.metadata import Metadata
from porter.artifacts.source import StoredPort
from porter.evaluation.result import Evaluation
from porter.mapping.schema import VariantMapping
from porter.models.create import pretrained_cfg
from porter.models.feature_info import pyramid
from porter.network.network import Head, Network
from porter.network.node import activations, multiply_accumulates
from porter.network.nodes import nodes
from porter.network.spec import ACTIVATIONS
from porter.parity.verdict import Verdict
from porter.port import Port
from porter.releases.naming import architecture, why_not_timm
from porter.report.pages import environment
from porter.text import markdown_text

COLLECTION = "TF MobileNet V3"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # not learned


@dataclass(frozen=True)
class Card:
    """The content of a card. ``license`` and ``dataset`` are claimed unless they are None.

    ``sha256`` is the digest that Google's tarball was checked with, ``evaluated_on`` the name of the folder of images.
    """

    name: str
    port: Port
    metadata: Metadata
    parameters: int
    weights: Path
    verdict: Verdict
    evaluation: Evaluation | None
    exports: dict[str, str]
    license: str | None
    dataset: str | None
    own_mapping: bool
    sha256: str | None = None
    evaluated_on: str = ""

    @property
    def origin(self) -> str:
        """What the port was made from: ``checkpoint``, ``port``, or ``changed``, a port that was trained further."""
        if not isinstance(self.port.checkpoint, StoredPort):
            return "checkpoint"
        return "changed" if self.metadata.changed else "port"

    @property
    def evaluated(self) -> str:
        """The data of the accuracy."""
        assert self.evaluation is not None
        return f"{self.evaluated_on} ({len(self.evaluation.seen)} labelled images)"

    @property
    def head(self) -> Head | None:
        """The head of a segmenter or detector."""
        return self.port.network.head

    @property
    def task(self) -> str:
        """The task as Hugging Face and timm call it."""
        return "Image Classification" if self.head is None else self.head.TASK

    @property
    def not_in_timm(self) -> str | None:
        """Why timm cannot load the folder; None if it can."""
        return why_not_timm(self.port.mapping, self.metadata)


def images(mapping: VariantMapping, metadata: Metadata) -> dict[str, Any]:
    """The images in ``config.json``: timm's keys, and the levels of pixels of weights that compute 8 bits."""
    found = pretrained_cfg(mapping, metadata.num_classes)
    if metadata.ranges and mapping.input.levels:
        found["levels"] = mapping.input.levels
    return found


def config(port: Port, metadata: Metadata) -> bytes:
    """``config.json``, for ``timm.create_model("local-dir:FOLDER")`` if timm's class computes these weights."""
    cfg = images(port.mapping, metadata)
    del cfg["architecture"]
    content: dict[str, Any] = {
        "architecture": architecture(port.mapping, metadata),
        "num_classes": metadata.num_classes,
        "num_features": port.network.features,
    }
    if metadata.class_names:
        content["label_names"] = metadata.class_names
    if why_not_timm(port.mapping, metadata) is None:
        content["pretrained_cfg"] = cfg
    else:
        content |= {"library": "mnv3-port", "variant": metadata.variant, "images": cfg}
        content["fake_quant"] = bool(metadata.ranges)
    return json.dumps(content, indent=2).encode() + b"\n"


def model_card(card: Card) -> bytes:
    """The card: Hugging Face's front matter, usage, and timm's ``model-index`` block."""
    import yaml

    port, spec = card.port, card.port.mapping.input
    templates = environment("porter.releases", keep_trailing_newline=True)
    templates.filters["plain"] = markdown_text
    found = nodes(port.network, port.plan.num_classes)
    operations, outputs = (count(found, spec.sides) for count in (multiply_accumulates, activations))
    text = templates.get_template("card.md.j2").render(
        card=card,
        front_matter=yaml.safe_dump(_front_matter(card), sort_keys=False),
        # It is inside a comment, which text from a mapping file must not end
        model_index=yaml.safe_dump(_model_index(card, operations), sort_keys=False).replace("-->", "-- >"),
        port=port,
        spec=spec,
        operations=operations,
        activations=outputs,
        metadata=card.metadata,
        verdict=card.verdict,
        evaluation=card.evaluation,
        taps=pyramid(port.network),
    )
    return text.encode()


def _front_matter(card: Card) -> dict[str, Any]:
    in_timm = card.not_in_timm is None
    task_tag = "image-classification" if card.head is None else card.head.TAG
    found: dict[str, Any] = {
        "tags": [task_tag, *(["timm"] if in_timm else []), "mobilenetv3"],
        "library_name": "timm" if in_timm else "pytorch",
        "pipeline_tag": task_tag,
    }
    if card.license:
        found["license"] = card.license
    if card.dataset:
        found["datasets"] = [card.dataset]
    if card.evaluation:
        metrics = [
            {"type": "accuracy", "name": f"Top {k} accuracy", "value": round(accuracy.value * 100, 3)}
            for k, accuracy in ((k, card.evaluation.accuracy(0, k)) for k in (1, 5))
        ]
        task = {"type": "image-classification", "name": "Image Classification"}
        dataset = {"type": "imagefolder", "name": card.evaluated}  # Hugging Face's word for a folder of images
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        found["model-index"] = [{"name": card.name, "results": results}]
    return found


def _model_index(card: Card, operations: int) -> dict[str, Any]:
    port, spec, evaluation = card.port, card.port.mapping.input, card.evaluation
    training = port.mapping.training if card.sha256 else None
    metadata: dict[str, Any] = {
        "FLOPs": operations,
        "Parameters": card.parameters,
        "File Size": card.weights.stat().st_size,
        "Architecture": _architecture(port.network, port.plan.num_classes),
        "Tasks": [card.task],
    }
    if training:
        metadata |= {
            "Training Techniques": ["RMSProp", "Weight Decay"],
            "Training Data": ["ImageNet"],
            "Training Resources": training.resources,
        }
    metadata["ID"] = card.name
    if training:
        metadata |= {
            "LR": training.lr,
            "Dropout": training.dropout,
            "Momentum": training.momentum,
            "Batch Size": training.batch_size,
            "Weight Decay": training.weight_decay,
            "RMSProp Decay": training.rmsprop_decay,
        }
    size = "x".join(map(str, dict.fromkeys(spec.sides)))
    metadata |= {"Crop Pct": str(spec.crop), "Image Size": size, "Interpolation": "bilinear"}
    model: dict[str, Any] = {
        "Name": card.name,
        "In Collection": COLLECTION,
        "Metadata": metadata,
        "Weights": card.weights.name,
    }
    if evaluation:
        metrics = {f"Top {k} Accuracy": f"{evaluation.accuracy(0, k).value:.2%}" for k in (1, 5)}
        model["Results"] = [{"Task": "Image Classification", "Dataset": card.evaluated, "Metrics": metrics}]
    paper = {"Title": "Searching for MobileNetV3", "URL": "https://arxiv.org/abs/1905.02244"}
    return {"Type": "model-index", "Collections": [{"Name": COLLECTION, "Paper": paper}], "Models": [model]}


def _architecture(network: Network, classes: int) -> list[str]:
    """The network's features in timm's words, from its table."""
    activations = {block.activation for block in network.blocks} | {network.stem_activation, network.last_activation}
    parts = {
        "1x1 Convolution": True,
        "Batch Normalization": True,
        "Convolution": True,
        "Dense Connections": classes > 0,
        "Depthwise Separable Convolution": any(block.depthwise for block in network.blocks),
        "Dropout": classes > 0,
        "Global Average Pooling": True,
        "Inverted Residual Block": any(block.expands for block in network.blocks),
        "Residual Connection": any(block.residual for block in network.blocks),
        "Softmax": classes > 0,
        "Squeeze-and-Excitation Block": any(block.squeezed for block in network.blocks),
    }
    parts |= {forms.card: name in activations for name, forms in ACTIVATIONS.items()}
    return sorted(name for name, there in parts.items() if there)
