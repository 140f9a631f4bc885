"""Models of keras.applications with values everywhere."""

import numpy as np

from porter.mapping.files import load_variant

VARIANT = "small_minimal_100"  # the fewest layers


def build(keras, variant=VARIANT, classes=11, side=224, **kwargs):
    """Keras's model of ``variant`` for images of ``side``, with seeded values everywhere, statistics of batch norms included."""
    spec = load_variant(variant).keras
    options = {"alpha": spec.alpha, "minimalistic": spec.minimalistic, "weights": None, "classes": classes}
    model = getattr(keras.applications, spec.model)(input_shape=(side, side, 3), **options | kwargs)
    random = np.random.default_rng(0)
    values = []
    for weight in model.weights:
        last = weight.name.rsplit("/", 1)[-1].split(":")[0]
        if last in ("gamma", "moving_variance"):
            values.append(random.uniform(0.5, 1.5, weight.shape))
        elif last in ("beta", "bias", "moving_mean"):
            values.append(random.normal(0, 0.2, weight.shape))
        else:
            fan_in = np.prod(weight.shape[:2] if "depthwise" in weight.name else weight.shape[:3])
            values.append(random.normal(0, fan_in**-0.5, weight.shape))
    model.set_weights([value.astype(np.float32) for value in values])
    return model
