"""The checks hold for every built-in backbone, and each of them finds what it is there for."""

import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import PluginError
from leukemia_dl.models import application
from leukemia_dl.testing import BACKBONE_CHECKS, check_backbone, parametrize_with_checks
from leukemia_dl.testing import checks as module

keras = pytest.importorskip("keras")
LARGE = (
    "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_b0", "inception_v3", "mobilenet_v3_small",
    "resnet50", "vgg16", "xception",
)  # fmt: skip


def specs(*names):
    return [ldl.get_backbone(name) for name in names]


@parametrize_with_checks(specs("cnn", "published_cnn"))
def test_a_builtin_backbone(spec, check):
    keras.utils.clear_session()
    check(spec)


@pytest.mark.slow
@parametrize_with_checks(specs(*LARGE))
def test_a_large_backbone(spec, check):
    keras.utils.clear_session()
    check(spec)


def net(layers, **changes):
    """Return a spec whose builder applies layers one after the other."""

    def build(inputs, weights):
        x = inputs
        for layer in layers():
            x = layer(x)
        return x

    fields = {"name": "odd", "build": build, "scaling": "unit", "native_size": 16, "min_size": 16}
    return ldl.BackboneSpec(**fields | changes)


def convolution(**settings):
    return keras.layers.Conv2D(4, 3, **{"activation": "gelu", "name": "conv"} | settings)


def test_a_small_backbone_of_ones_own_holds():
    check_backbone(net(lambda: [convolution()], parameters=4 * 3 * 9 + 4))


class Restless(keras.layers.Layer):
    """Moves a weight of its own in every training step, frozen or not."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.count.assign_add(1.0)
        return x


def unconnected():
    class Idle(keras.layers.Layer):
        def build(self, shape):
            self.idle = self.add_weight(shape=(2,), initializer="ones", name="idle")

        def call(self, x):
            return x

    return [convolution(), Idle(name="idle")]


class OwnNorm(keras.layers.Layer):
    """Keeps a moving mean that nothing but its own training steps brings up to date."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="moving_mean")

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=(0, 1, 2)))
        return x - self.mean


class Composite(keras.layers.Layer):
    def __init__(self, norm, **settings):
        super().__init__(**settings)
        self.norm = norm

    def call(self, x, training=False):
        return self.norm(x, training=training)


def test_batchnorm_inside_a_composite_layer_passes_and_other_statistics_do_not():
    """20.8: statistics that a training step moves are counted against the layers that a fit re-estimates."""
    module.check_training(net(lambda: [convolution(), Composite(keras.layers.BatchNormalization())]))
    with pytest.raises(AssertionError, match=r"moves 1 weights .*moving_mean"):
        module.check_training(net(lambda: [convolution(), Composite(OwnNorm())]))


def test_features_of_any_scale_pass():
    """20.27: random features of some stock nets, such as MobileNetV2, are about 1e-10; their head learns too."""
    tiny = net(lambda: [convolution(), keras.layers.Rescaling(1e-10)])
    for check in (module.check_training, module.check_freezing):
        check(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2"])
def test_a_stock_net_passes(name):
    """20.27: the documentation's own example passes every check."""
    build = application(name)
    keras.utils.clear_session()
    check_backbone(ldl.BackboneSpec(name="stock", build=build, scaling="tf", native_size=224, min_size=32))


WRONG = {
    "parameters": (
        module.check_architecture,
        net(lambda: [convolution()], parameters=5),
        "5 parameters are declared, and there are 112",
    ),
    "seed": (
        module.check_seed,
        net(lambda: [convolution(kernel_initializer="ones")]),
        "the weights do not depend on the seed",
    ),
    "predictions": (
        module.check_predictions,
        net(lambda: [convolution(), keras.layers.Rescaling(1e38), keras.layers.Rescaling(1e38)]),
        "not finite",
    ),
    "gradients": (module.check_training, net(unconnected), r"no gradient reaches 1 weights, such as \['idle/idle'\]"),
    "freezing": (
        module.check_freezing,
        net(lambda: [convolution(), Restless(name="restless")]),
        "although their layers are frozen",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_check_finds_what_it_is_there_for(name):
    check, spec, says = WRONG[name]
    with pytest.raises(AssertionError, match=f"^odd: .*{says}"):
        check(spec)


def test_what_is_no_feature_map_is_the_plugins_error():
    with pytest.raises(PluginError, match="feature map"):
        check_backbone(net(lambda: [lambda x: [x]]))


def test_a_frozen_layer_inside_a_nested_model_may_be_called_as_one_of_the_head():
    """Layers of a nested model have names and paths of their own, such as "logits/kernel"."""
    module.check_freezing(net(lambda: [keras.Sequential([convolution(name="logits")], name="inner")]))
    with pytest.raises(AssertionError, match="although their layers are frozen"):
        module.check_freezing(net(lambda: [keras.Sequential([convolution(), Restless(name="logits")])]))


def test_a_layer_that_does_not_save_is_found():
    lost = net(lambda: [convolution(), Restless(name="restless")])
    with pytest.raises(Exception, match="Restless"):
        module.check_saving(lost)


def test_the_names_of_the_checks_differ():
    assert len(BACKBONE_CHECKS) == len({check.__name__ for check in BACKBONE_CHECKS}) == 7
