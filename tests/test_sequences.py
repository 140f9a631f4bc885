"""Second and third steps after a port: whatever a user does one after the other, the function is the one expected.

The expectation is tests/plain_network.py: a network in plain functions, to which each step does what its documentation
says, in a line or two. Weights are compared entry by entry, then taken over, so that every step starts exact.
"""

import copy
import io
import itertools
import operator
import pickle

import msgspec
import numpy as np
import pytest
import torch
from forms import ULP, run_onnx, run_tflite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_network import SIXTH, Plain
from random_tables import mappings
from safetensors.torch import save_file

import porter
from porter.errors import PorterError
from porter.mapping.files import load_variant, standalone
from porter.mapping.schema import Classes
from porter.network.network import GATE_ENTRY
from porter.parity.demo import random_variables
from porter.sources.bundle_writer import write_bundle

# Of weights after a step: what rounding them once or twice may change
ROUNDED = {torch.float64: 1e-13, torch.float32: 4 * ULP, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
EXACT = 1e-11  # of outputs in float64, as the weights are the same
SMALL = 0.25  # a multiplier, which is found in the file
INSTALLED = [("small_100", 6), ("small_100", 1001), ("small_minimal_100", 6), ("edgetpu_100", 5), ("large_100", 7)]


class Walk:
    """Where a user is: a file at ``path`` or a ``model``, and ``plain``, what it has to compute.

    ``known``: the file or model says where it comes from. ``background`` is the weights and bias of the class that was
    dropped. ``frozen`` parameters want no gradient.
    """

    def __init__(self, draw, folder):
        self.draw, self.folder, self.count, self.told = draw, folder, 0, []
        mapping, classes, self.own = self.table()
        self.mapping, self.frozen, self.background, self.dtype = mapping, set(), None, torch.float32
        if self.own:
            (folder / "own.yaml").write_bytes(standalone(mapping))
            self.own = {"mapping": folder / "own.yaml"}
        self.source = self.path = folder / "model-1"
        write_bundle(self.source, random_variables(mapping, classes))
        self.model, self.known, self.checkpoint = None, True, True
        sides = draw(st.tuples(st.integers(17, 40), st.integers(17, 40)))
        self.image = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 4, *sides)))
        # The port as it is: one step, which other tests prove
        model = porter.create_model(mapping.variant, self.path, layout="slim", keep_background=True, **self.own)
        gate = mapping.definition.gate
        table = mapping.network
        self.plain = Plain(mapping, entries(model), gate, classes, pooling=table.pooling, tail=tuple(table.tail))
        self.plain.output_stride = table.output_stride
        self.first, self.pooling = self.plain.copy(), table.pooling

    def table(self):
        """A mapping, its classes, and options that name it: of a table of one's own, or a small installed network."""
        if self.draw(st.integers(0, 2)):
            mapping = self.draw(mappings())
            plain = not mapping.head and not mapping.network.tail
            classes = Classes(background=0, background_of=4) if plain and self.draw(st.booleans()) else Classes()
            small = msgspec.structs.replace(mapping.input, size=32)
            stride = self.draw(st.sampled_from([None, None, *strides(mapping.network)]))
            table = msgspec.structs.replace(mapping.network, output_stride=stride)
            return msgspec.structs.replace(mapping, input=small, classes=classes, network=table), 4, True
        name, classes = self.draw(st.sampled_from(INSTALLED))
        mapping = load_variant(name)
        table = msgspec.structs.replace(mapping.network, multiplier=SMALL)
        return msgspec.structs.replace(mapping, network=table), classes, {}

    # Parts of steps

    def new(self, suffix):
        self.count += 1
        return self.folder / f"{self.count}{suffix}"

    def try_to(self, do, refusals=()):
        """What ``do`` gives; None where it is refused for one of the reasons, in one line."""
        if not refusals:
            return do()
        with pytest.raises((PorterError, ValueError, RuntimeError, IndexError), match="|".join(refusals)) as caught:
            do()
        message = getattr(caught.value, "message", str(caught.value))
        assert "\n" not in message, message
        return None

    def named(self):
        """Options that a file needs to be opened."""
        return {"variant": self.mapping.variant, **self.own}

    def no_rules(self):
        """Why a folded port is no source by a mapping of one's own, which has no rules for biases."""
        folded = self.own and not self.checkpoint and self.folded()
        return ["batch norms are folded away, and those of its mapping file are not"] if folded else []

    def folded(self):
        return any(name.endswith("conv_stem.bias") for name in self.plain.weights)

    def look(self):
        """Run the plain network, for what its runs note."""
        return self.plain(self.image[:, : self.plain.channels])

    def renew(self, model, layers):
        """Take over the weights of new layers, which must be untrained."""
        own = entries(model)
        for layer in layers:
            weight, bias = own[f"{layer}.weight"], own[f"{layer}.bias"]
            assert not bias.any()
            assert 0 < weight.abs().max() < 0.181
            before = self.plain.weights.get(f"{layer}.weight")
            assert before is None or not torch.equal(weight, before)
            self.plain.replaced(**{f"{layer}.weight": weight, f"{layer}.bias": bias})

    def check(self, model, rounded):
        """``model`` has the plain network's weights, which may be ``rounded`` from them, and its outputs."""
        own, plain = entries(model), self.plain
        assert own.keys() == plain.weights.keys()
        for name, value in own.items():
            want = plain.weights[name]
            assert value.shape == want.shape, name
            assert (value - want).abs().max() <= rounded * want.abs().max(), name
        plain.weights = own
        expected = self.look()
        exact = copy.deepcopy(model).double().eval()
        if plain.maps is None:
            assert exact.num_classes == plain.classes
        x = self.image[:, : plain.channels]
        with torch.no_grad():
            found = exact(x)
            same(found, expected, EXACT)
            if not model.training and self.dtype == torch.float32:
                same(model(x.float()), *self.rounding())
            if not model.training and self.dtype == torch.float64:
                same(model(x), expected, EXACT)
        assert len(model.pretrained_cfg["mean"]) == plain.channels
        if plain.maps is not None:
            assert [one.shape[1] for one in found] == [model.feature_info.channels()[i] for i in range(len(found))]
        for name, value in model.named_parameters():
            assert value.dtype == self.dtype
            assert value.requires_grad == (name not in self.frozen), name

    def rounding(self):
        """The outputs, and what float32 may be off by: eight times the plain network's own error, as in tests/forms.py."""
        x, plain = self.image[:, : self.plain.channels], self.plain.copy()
        exact = plain(x)
        plain.weights = {name: value.float() for name, value in plain.weights.items()}
        off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(plain(x.float()), exact))
        return exact, 8 * max(off, 8 * ULP)

    def check_file(self, rounded):
        """What opens the file is the plain network, for a gate of 1/6."""
        self.look()
        self.plain.for_gate(SIXTH)
        self.dtype, self.frozen = torch.float32, set()
        model = porter.create_model(checkpoint=self.path, **self.named())
        self.drop_background_of_checkpoint()
        self.check(model, rounded)

    def drop_background_of_checkpoint(self):
        """A checkpoint's class 0 is dropped, unless it is kept."""
        if self.checkpoint and self.mapping.classes.background_of == self.plain.classes:
            weight, bias = (self.plain.weights[f"classifier.{part}"] for part in ("weight", "bias"))
            self.background = weight[:1], bias[:1]
            self.plain.replaced(**{"classifier.weight": weight[1:], "classifier.bias": bias[1:]})
            self.plain.classes -= 1

    def restore_background(self):
        if self.background is not None:
            for part, row in zip(("weight", "bias"), self.background):
                name = f"classifier.{part}"
                self.plain.replaced(**{name: torch.cat([row, self.plain.weights[name]])})
            self.plain.classes += 1
            self.background = None

    def pool(self, word):
        """By timm's word. A state dict does not say ``""``, but what was before it."""
        self.plain.pooling = {"avg": "average", "max": "max", "": None}[word]
        self.pooling = self.plain.pooling or self.pooling

    # Steps from a file

    def file_convert(self):
        """To another artifact."""
        suffix = self.draw(st.sampled_from([".pth", ".safetensors"]))
        kept, fold = self.draw(st.booleans()), self.draw(st.booleans())
        # A file that does not say where it comes from has 1/6 as its source's gate, and export_tf keeps that
        layout = self.draw(st.sampled_from(["timm", "slim"])) if self.known else "timm"
        options = {"layout": layout, "fold_bn": fold, "keep_background": kept}
        converted = self.try_to(
            lambda: porter.convert(self.path, self.new(suffix), **options, **self.named()), self.no_rules()
        )
        if converted is None:
            return
        self.path, port = converted
        if self.checkpoint and not kept:
            self.drop_background_of_checkpoint()
        elif not self.checkpoint and kept:
            self.restore_background()
        self.look()
        if fold:
            self.plain.fold()
        assert port.plan.num_classes == self.plain.classes
        self.known, self.checkpoint = True, False
        self.check_file(ROUNDED[torch.float32])

    def file_open(self):
        """As a model, with any options."""
        draw, plain = self.draw, self.plain
        reached = strides(self.mapping.network)
        options = {
            "layout": draw(st.sampled_from([None, None, "timm", "slim"])),
            "num_classes": draw(st.sampled_from([None, None, None, 0, plain.classes, 5])),
            "in_chans": draw(st.sampled_from([None, None, None, 1, 3, 4])),
            "global_pool": draw(st.sampled_from([None, None, None, "avg", "max", ""])),
            "output_stride": draw(st.sampled_from([None, None, None, 8, *reached])),
            "features_only": draw(st.integers(0, 3)) == 0,
            "out_indices": draw(st.none() | st.lists(st.integers(-3, 2), min_size=1, max_size=3)),
            "fold_bn": draw(st.integers(0, 3)) == 0,
        }
        if not options["features_only"]:
            options["out_indices"] = None
        head, maps = self.mapping.head, options["features_only"]
        self.look()
        refusals = []
        if head and maps and (self.own or not self.checkpoint):
            refusals.append("port the backbone alone")
        if head and options["num_classes"] == 0 and not maps:
            refusals.append("num_classes=0: only a classifier")
        if head and options["global_pool"] is not None and not maps:
            refusals.append("only a classifier pools")
        if options["output_stride"] is not None and options["output_stride"] not in reached:
            refusals.append("output_stride=8: use one of")
        if options["layout"] == "slim" and not self.known and plain.gated and plain.gate == SIXTH:
            refusals.append("gate fold is not known")
        classes = options["num_classes"]
        if classes is None:
            classes = plain.classes
            if self.checkpoint and self.mapping.classes.background_of == classes:
                classes -= 1
        if options["global_pool"] == "" and classes and not head and not maps:
            refusals.append("global_pool=''")
        if maps and options["out_indices"]:
            stride = options["output_stride"] or plain.output_stride
            count = len(pyramid(self.mapping.network, stride))
            if any(not -count <= index < count for index in options["out_indices"]):
                refusals.append("out_indices: .* is none of")
        model = self.try_to(lambda: porter.create_model(checkpoint=self.path, **options, **self.named()), refusals)
        if model is None:
            return
        self.drop_background_of_checkpoint()
        self.opened(model, options)

    def opened(self, model, options):
        """``model`` was opened from the file with ``options``."""
        plain, fresh = self.plain, []
        self.look()
        plain.for_gate(self.mapping.definition.gate if options["layout"] == "slim" else SIXTH)
        if options["in_chans"]:
            plain.for_channels(options["in_chans"])
        plain.output_stride = options["output_stride"] or plain.output_stride
        if options["features_only"]:
            stride = plain.output_stride
            count = pyramid(self.mapping.network, stride)
            if self.mapping.head:
                plain.mapping = msgspec.structs.replace(plain.mapping, segmentation=None, detection=None)
                plain.weights = {
                    name.removeprefix("backbone."): value
                    for name, value in plain.weights.items()
                    if name.startswith("backbone.")
                }
            plain.without("classifier", "conv_head", "bn2")
            plain.maps = [count[index] for index in options["out_indices"] or count]
            plain.classes, self.known, self.background = 0, False, None
        else:
            if options["global_pool"] is not None:
                self.pool(options["global_pool"])
            if options["num_classes"] not in (None, plain.classes):
                plain.classes, self.background = options["num_classes"], None
                if not plain.classes:
                    plain.without("classifier")
                    plain.tail = ()
                else:
                    fresh = self.class_layers()
            self.renew(model, fresh)
        if options["fold_bn"]:
            self.look()
            plain.fold()
        self.model, self.checkpoint, self.dtype, self.frozen = model, False, torch.float32, set()
        self.check(model, ROUNDED[torch.float32])

    def class_layers(self):
        head, tail = self.mapping.head, self.plain.tail
        if head:
            count = len(head.extra) + 2 if head.KIND == "detector" else 0
            return [f"classes.{n}.1" for n in range(count)] or [
                "classifier.high_classifier",
                "classifier.low_classifier",
            ]
        dense = [number for number, layer in enumerate(tail) if layer.kind == "dense"]
        return [f"classifier.{dense[-1]}" if len(tail) > 1 else "classifier"]

    def file_back(self):
        """To a TensorFlow checkpoint, which holds weights alone."""
        if self.own and self.plain.channels != self.first.channels:
            return  # that mapping cannot read it
        if not self.plain.classes or self.plain.tail != self.first.tail:
            return  # nor would it find its classifier
        refusals = []
        if self.folded():
            refusals.append("batch norms are folded away")
        if self.checkpoint:
            refusals = ["no artifact"]
        exported = self.try_to(lambda: porter.export_tf(self.path, self.new(""), **self.named()), refusals)
        if exported is None:
            return
        self.look()
        if self.background is None and self.mapping.classes.background_of == self.plain.classes + 1:
            zeros = [torch.zeros_like(self.plain.weights[f"classifier.{part}"][:1]) for part in ("weight", "bias")]
            self.background = tuple(zeros)
        self.restore_background()
        self.path, self.checkpoint, self.known = exported.prefix, True, True
        self.plain.pooling = self.pooling = self.first.pooling
        self.plain.output_stride = self.first.output_stride
        self.check_file(ROUNDED[torch.float32])
        self.back_to_checkpoint()

    def back_to_checkpoint(self):
        """Its class 0 is there, though what opens it drops it."""
        self.restore_background()

    def file_graphs(self):
        """As .onnx and .tflite, which change nothing."""
        paths = []
        for kind in (".onnx", ".tflite"):
            path = self.new(kind)
            if self.try_to(lambda path=path: porter.convert(self.path, path, **self.named()), self.no_rules()) is None:
                return
            paths.append(path)
        plain = self.plain
        kept = plain.copy()
        if self.checkpoint:
            self.drop_background_of_checkpoint()
        sides = self.mapping.input.sides
        self.graphs(*paths, sides)
        self.plain, self.background = kept, None if self.checkpoint else self.background

    def graphs(self, onnx, tflite, sides):
        image, channels = self.image, self.plain.channels
        values = np.random.default_rng(1).uniform(-1, 1, (1, *sides, channels)).astype("f")
        self.image = torch.from_numpy(values).permute(0, 3, 1, 2).double()
        expected, rounding = self.rounding()
        self.image = image
        same(run_onnx(onnx, values)[: len(expected)], expected, rounding)
        found = [torch.from_numpy(one) for one in run_tflite(tflite, values)[: len(expected)]]
        same([one.permute(0, 3, 1, 2) if one.ndim == 4 else one for one in found], expected, rounding)

    # Steps from a model

    def model_reset(self):
        draw, plain = self.draw, self.plain
        if self.mapping.head or plain.maps is not None:
            return
        classes, pool = draw(st.sampled_from([0, 2, plain.classes])), draw(st.sampled_from([None, "avg", "max", ""]))
        refusals = []
        if pool == "" and classes:
            refusals.append("global_pool=''")
        if pool is None and classes and plain.pooling is None:
            refusals.append("a map without pooling")
        if self.try_to(lambda: self.model.reset_classifier(classes, pool) or True, refusals) is None:
            return
        if pool is not None:
            self.pool(pool)
        plain.tail, plain.classes, self.background = (), classes, None
        before = plain.weights.get("classifier.weight")
        plain.without("classifier")
        if before is not None:
            plain.replaced(**{"classifier.weight": before})
        if classes:
            self.renew(self.model, ["classifier"])
        else:
            plain.without("classifier")
        self.frozen = {name for name in self.frozen if not name.startswith("classifier")}
        self.check(self.model, 0)

    def model_fold(self):
        self.model = porter.fold(self.model)
        self.look()
        for layer, norm, _ in self.plain.normed:
            self.frozen -= {f"{norm}.weight", f"{norm}.bias"}
            self.frozen |= {f"{layer}.bias"} if f"{layer}.weight" in self.frozen else set()
        self.plain.fold()
        assert not self.model.training
        self.check(self.model, ROUNDED[self.dtype])

    def model_dtype(self):
        self.dtype = self.draw(st.sampled_from(list(ROUNDED)))
        self.model = self.model.to(self.dtype)
        self.check(self.model, ROUNDED[self.dtype])

    def model_copy(self):
        how = self.draw(st.sampled_from(["copy", "pickle", "save", "channels_last"]))
        if how == "copy":
            self.model = copy.deepcopy(self.model)
        elif how == "pickle":
            self.model = pickle.loads(pickle.dumps(self.model))
        elif how == "save":
            buffer = io.BytesIO()
            torch.save(self.model, buffer)
            buffer.seek(0)
            self.model = torch.load(buffer, weights_only=False)
        else:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.check(self.model, 0)

    def model_train(self):
        """One step of training; what it gives is the port's from then on."""
        self.model.train()
        if self.dtype not in (torch.float32, torch.float64):
            return
        if hasattr(self.model, "drop_rate"):
            self.model.drop_rate = 0.0
        if hasattr(self.model, "set_grad_checkpointing"):
            self.model.set_grad_checkpointing(self.draw(st.booleans()))
        before = entries(self.model)
        wanted = [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]
        found = self.model(self.image[:, : self.plain.channels].to(self.dtype))
        if wanted:
            sum(one.square().mean() for one in (found if isinstance(found, (tuple, list)) else [found])).backward()
            torch.optim.SGD([one for _, one in wanted], lr=1e-3).step()
            self.model.zero_grad()
        own = entries(self.model)
        moved = {name for name, value in own.items() if not torch.equal(value, before[name])}
        assert not moved & self.frozen
        assert moved or not wanted
        self.plain.weights = own
        if self.draw(st.booleans()):
            self.model.eval()
        self.check(self.model, 0)

    def model_freeze(self):
        start = self.draw(st.sampled_from(["", "blocks.0", "conv_stem", "classifier", "backbone"]))
        for name, parameter in self.model.named_parameters():
            if name.startswith(start):
                parameter.requires_grad_(False)
                self.frozen.add(name)
        self.check(self.model, 0)

    def model_mode(self):
        self.model.train(self.draw(st.booleans()))
        self.check(self.model, 0)

    def model_save(self):
        """Its state dict as a file, as people write them."""
        how = self.draw(st.sampled_from(["plain", "plain", "nested", "wrapped", "safetensors"]))
        plain, first, known = self.plain, self.first, self.known and how != "safetensors"
        facts = [(one.output_stride, one.channels, one.tail) for one in (plain, first)]
        alike = facts[0] == facts[1] and (plain.pooling == first.pooling or plain.maps is not None)
        if not known and not (self.own and alike and plain.mapping is first.mapping):
            return  # the file does not say how it differs from its mapping
        self.path, self.known = self.new(".safetensors" if how == "safetensors" else ".pth"), known
        wrapped = torch.nn.Module()
        wrapped.module = self.model
        state = wrapped.state_dict() if how == "wrapped" else self.model.state_dict()
        if how == "safetensors":
            save_file({name: value.contiguous() for name, value in state.items()}, self.path)
        else:
            torch.save({"state_dict": state} if how == "nested" else state, self.path)
        if plain.maps is not None:
            plain.maps, plain.tail, plain.pooling = None, (), first.pooling
        plain.pooling, self.model = plain.pooling or self.pooling, None  # as documented
        self.check_file(ROUNDED[torch.float32])

    def model_load(self):
        """Its state dict in another model, made from the first checkpoint for the same function."""
        plain, first, maps = self.plain, self.first, self.plain.maps is not None
        if plain.mapping is not first.mapping or (plain.classes and plain.tail != first.tail):
            return
        pooling = None if self.mapping.head or maps else {"average": "avg", "max": "max", None: ""}[plain.pooling]
        other = porter.create_model(
            checkpoint=self.source,
            layout="timm" if plain.gate == SIXTH else "slim",
            num_classes=plain.classes,
            in_chans=plain.channels,
            global_pool=pooling,
            output_stride=plain.output_stride,
            fold_bn=self.folded(),
            features_only=maps,
            out_indices=plain.maps,
            **self.named(),
        )
        other.load_state_dict(self.model.state_dict())
        self.model, self.known, self.dtype, self.frozen = other, not maps, torch.float32, set()
        self.background = None
        if self.mapping.classes.background_of == first.classes == plain.classes + 1:
            self.background = tuple(first.weights[f"classifier.{part}"][:1] for part in ("weight", "bias"))
        self.check(other, ROUNDED[torch.float32])

    def model_deploy(self):
        refusals = []
        if self.dtype != torch.float32:
            refusals.append("only a float32 model")
        if self.plain.pooling is None and self.plain.maps is None:
            refusals.append("layer global_pool: is Identity")
        x = self.image[:, : self.plain.channels]
        size = tuple(x.shape[2:]) if self.mapping.head or self.draw(st.booleans()) else None
        deployed = self.try_to(lambda: porter.deploy(self.model, size, threads=1), refusals)
        if deployed is not None:
            same(deployed(x.float()), *self.rounding())
        self.check(self.model, 0)

    def model_run(self):
        """By tracing, by a functional call, and in parts."""
        x, expected = self.image[:, : self.plain.channels].to(self.dtype), self.look()
        if self.dtype not in (torch.float32, torch.float64) or self.model.training:
            return
        tolerance = EXACT if self.dtype == torch.float64 else self.rounding()[1]
        with torch.no_grad():
            if self.draw(st.booleans()):
                traced = torch.jit.trace(self.model, torch.zeros_like(x), check_trace=False)
                same(traced(x), expected, tolerance)
            own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            same(torch.func.functional_call(self.model, own, (x,)), expected, tolerance)
            if not self.mapping.head and self.plain.maps is None:
                maps = self.plain.copy()
                maps.maps = list(pyramid(self.mapping.network, self.plain.output_stride))
                last, found = self.model.forward_intermediates(x)
                same(found, maps(x.double()), tolerance)
                same(self.model.forward_head(last), expected, tolerance)
        self.check(self.model, 0)


def entries(model):
    """The weights in float64, under the names of timm that parameters have in every network."""
    own = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: value.detach().to(torch.float64, copy=True)
        for name, value in own
        if not name.endswith(("num_batches_tracked", GATE_ENTRY))
    }


def same(found, expected, tolerance):
    found = found if isinstance(found, (tuple, list)) else [found]
    assert len(found) == len(expected)
    for one, want in zip(found, expected):
        one = torch.as_tensor(one)
        assert one.shape == want.shape, (one.shape, want.shape)
        off = float((one.double() - want).abs().max() / (want.abs().max() or 1.0))
        assert off <= tolerance, off


def strides(table, output_stride=None):
    """The strides that a network reaches, in their order; with an output stride, those up to it."""
    reached = itertools.accumulate([table.stem.stride, *(row.stride for row in table.blocks)], operator.mul)
    return list(dict.fromkeys(one for one in reached if output_stride is None or one <= output_stride))


def pyramid(table, output_stride=None):
    """The numbers of the maps of a pyramid: a stage gives its last map alone."""
    stride, found = table.stem.stride, {table.stem.stride}
    for row, following in zip(table.blocks, [*table.blocks[1:], None]):
        stride *= 1 if stride == output_stride else row.stride
        found |= {stride} if following is None or following.stage != row.stage else set()
    return range(len(found))


STEPS = {
    kind: [getattr(Walk, name) for name in vars(Walk) if name.startswith(f"{kind}_")] for kind in ("file", "model")
}


def walk(draw, folder):
    """A drawn sequence of steps."""
    here = Walk(draw, folder)
    for _ in range(draw(st.integers(2, 9))):
        step = draw(st.sampled_from(STEPS["file" if here.model is None else "model"]))
        here.told.append(step.__name__)
        step(here)


SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=8, deadline=None, suppress_health_check=SUPPRESSED, derandomize=True)
@given(data=st.data())
def test_a_handful(data, tmp_path_factory):
    walk(data.draw, tmp_path_factory.mktemp("walk"))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_two_hundred(data, tmp_path_factory):
    walk(data.draw, tmp_path_factory.mktemp("walk"))
