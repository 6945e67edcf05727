"""The optimizer and the loss, held to Keras's own AdamW and cross-entropies, and to plain numpy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.training import Recipe
from leukemia_dl.training.optimizer import build_loss, build_optimizer, class_weights, rates_by_layer

keras = pytest.importorskip("keras")
PLAIN = Recipe(schedule="constant", warmup_fraction=0.0, global_clipnorm=0.0, weight_decay=0.0)


def variables(*shapes):
    random = np.random.default_rng(0)
    names = ("kernel", "bias", "gamma")
    return [
        keras.Variable(random.normal(size=shape).astype("float32"), name=name, trainable=True)
        for shape, name in zip(shapes, names, strict=False)
    ]


def steps(optimizer, values, count, planned=10):
    random = np.random.default_rng(1)
    optimizer.build(values)
    if hasattr(optimizer, "start"):
        optimizer.start(planned)
    seen = []
    for _ in range(count):
        gradients = [keras.ops.convert_to_tensor(random.normal(size=v.shape).astype("float32")) for v in values]
        optimizer.apply(gradients, values)
        seen.append([keras.ops.convert_to_numpy(v) + 0.0 for v in values])
    return seen


class HalfStepLater(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule over the share of the steps, read in the middle of each step."""

    def __init__(self, schedule, steps):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        return self.schedule((keras.ops.cast(step, "float32") + 0.5) / self.steps)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weight_decay": 0.3},
        {"global_clipnorm": 0.5},
        {"schedule": "cosine", "warmup_fraction": 0.2, "weight_decay": 0.1},
    ],
)
def test_it_is_keras_adamw(change):
    recipe = dataclasses.replace(PLAIN, **change)
    rate = 0.1
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(0.0, 0.8, warmup_target=0.1, warmup_steps=0.2)
        rate = HalfStepLater(rate, 10)
    theirs = keras.optimizers.AdamW(
        rate, weight_decay=recipe.weight_decay, global_clipnorm=recipe.global_clipnorm or None
    )
    theirs.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    expected = steps(theirs, variables((3, 2), (2,), (2,)), 10)
    found = steps(build_optimizer(recipe, 0.1, {}), variables((3, 2), (2,), (2,)), 10)
    for mine, other in zip(found, expected, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_share_of_the_rate_is_a_lower_rate_and_nothing_else():
    recipe = dataclasses.replace(PLAIN, weight_decay=0.1)
    kernel, bias = variables((3, 2), (2,))
    found = steps(build_optimizer(recipe, 0.1, {id(kernel): 0.25}), [kernel, bias], 5)[-1]
    slow = steps(build_optimizer(recipe, 0.025, {}), variables((3, 2), (2,)), 5)[-1]
    fast = steps(build_optimizer(recipe, 0.1, {}), variables((3, 2), (2,)), 5)[-1]
    np.testing.assert_allclose(found[0], slow[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], fast[1], rtol=1e-5)


def test_the_average_is_that_of_the_weights_after_each_step():
    values = variables((3, 2), (2,))
    optimizer = build_optimizer(PLAIN, 0.1, {}, ema_momentum=0.8)
    expected = [keras.ops.convert_to_numpy(v) + 0.0 for v in values]
    for step, seen in enumerate(steps(optimizer, values, 20)):
        kept = min(0.8, step / (9 + step))
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, seen, strict=True)]
    for mean, wanted in zip(optimizer.averages(), expected, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(mean), wanted, rtol=1e-5)
    assert build_optimizer(PLAIN, 0.1, {}).build(variables((2, 2))) is None


def test_the_rate_rises_linearly_then_falls_as_a_cosine_and_is_never_zero():
    recipe = dataclasses.replace(PLAIN, schedule="cosine", warmup_fraction=0.25)
    for schedule, last in (("cosine", 0.5 * (1 + np.cos(np.pi * 14.5 / 15))), ("constant", 1.0)):
        optimizer = build_optimizer(dataclasses.replace(recipe, schedule=schedule), 0.1, {})
        values, rates = variables((2, 2)), []
        optimizer.build(values)
        optimizer.start(20)
        for _ in range(20):
            rates.append(float(optimizer.learning_rate))
            optimizer.apply([keras.ops.ones((2, 2))], values)
        np.testing.assert_allclose(rates[:5], 0.1 * (np.arange(5) + 0.5) / 5, rtol=1e-5)
        assert rates[-1] == pytest.approx(0.1 * last, rel=1e-3)
        assert min(rates) > 0


def test_rates_fall_geometrically_from_the_head_to_the_first_layer():
    inputs = keras.Input((8,))
    x = inputs
    for width in (4, 4, 4, 4):
        x = keras.layers.ReLU()(keras.layers.Dense(width)(x))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    rates = rates_by_layer(model, 0.0001)
    layers = [layer for layer in model.layers if layer.weights]
    assert set(rates) == {id(weight) for weight in model.trainable_weights}
    for layer, share in zip(layers, [1e-4, 1e-3, 1e-2, 1e-1, 1], strict=True):
        assert [rates[id(weight)] for weight in layer.weights] == pytest.approx([share, share])
    assert set(rates_by_layer(model, 1.0).values()) == {1.0}
    single = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    assert set(rates_by_layer(single, 0.1).values()) == {1.0}


def test_layers_inside_a_composite_layer_have_rates_by_their_depth():
    """20.8: layers inside a composite layer or a nested model are layers of their own, in the order of their calls."""

    class Pair(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.other = keras.layers.Dense(4), keras.layers.Dense(4)

        def build(self, shape):
            self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")

        def call(self, x):
            return self.other(self.one(x)) * self.gain

    inputs = keras.Input((8,))
    pair, nested, last = Pair(), keras.layers.Dense(4), keras.layers.Dense(2)
    model = keras.Model(inputs, last(keras.Sequential([nested])(pair(inputs))))
    rates = rates_by_layer(model, 0.0001)
    assert set(rates) == {id(weight) for weight in model.trainable_weights}
    assert rates[id(pair.gain)] == pytest.approx(1e-4)  # what a layer owns comes before what is inside it
    for layer, share in zip((pair.one, pair.other, nested, last), (1e-3, 1e-2, 1e-1, 1), strict=True):
        assert [rates[id(weight)] for weight in layer.weights] == pytest.approx([share, share])


@settings(max_examples=12)
@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    balance=st.sampled_from(["none", "weights"]),
)
def test_the_loss_is_keras_own_weighted_by_class(labels, smoothing, balance):
    labels = np.array(labels)
    logits = np.random.default_rng(len(labels)).normal(size=(len(labels), 3)).astype("float32")
    recipe = Recipe(label_smoothing=smoothing, class_balance=balance)
    weights = class_weights(recipe, labels, 3)
    model = keras.Sequential([keras.layers.Identity()])
    model.compile(loss=build_loss(recipe, 3))
    found = model.evaluate(logits, labels, len(labels), 0, None if weights is None else weights[labels])
    each = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="none")
    losses = np.asarray(each(np.eye(3)[labels], logits))
    expected = losses.mean()
    if balance == "weights":
        # Each class that occurs counts alike, whatever its share.
        expected = np.mean([losses[labels == label].mean() for label in np.unique(labels)])
    assert found == pytest.approx(expected, rel=1e-5)
