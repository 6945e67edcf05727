import dataclasses
import functools
import importlib.util
import sys

import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import PluginError, UnknownNameError
from leukemia_dl.models import backbones


def test_the_built_in_ones_are_there_in_order():
    assert ldl.list_backbones() == [
        "cnn", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_b0", "inception_v3",
        "mobilenet_v3_small", "published_cnn", "resnet50", "vgg16", "xception",
    ]  # fmt: skip
    table = ldl.backbone_table()
    assert list(table["backbone"]) == ldl.list_backbones()
    assert (table["plugin"] == "leukemia-dl").all()
    assert (table["reference"] != "").all()
    assert (table["licence"] != "").all()


def test_register_replace_and_clash():
    spec = dataclasses.replace(ldl.get_backbone("cnn"), name="mine")
    assert ldl.register_backbone(spec) is spec
    assert "mine" in ldl.list_backbones()
    with pytest.raises(PluginError, match="replace=True"):
        ldl.register_backbone(spec)
    ldl.register_backbone(spec, replace=True)
    ldl.register_backbone(dataclasses.replace(spec, title="Mine"), replace=True)
    assert ldl.get_backbone("mine").title == "Mine"
    with pytest.raises(PluginError, match="'cnn' is provided by leukemia-dl"):
        ldl.register_backbone(dataclasses.replace(spec, name="cnn", title="Mine"), replace=True)
    with pytest.raises(PluginError, match="BackboneSpec"):
        ldl.register_backbone("cnn")


def test_an_unknown_name_suggests_the_near_one():
    with pytest.raises(
        UnknownNameError, match=r"no backbone 'resnet5'\. Did you mean 'resnet50'\?.*Known: cnn, "
    ) as caught:
        ldl.get_backbone("resnet5")
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Upper"},
        {"name": "a/b"},
        {"build": None},
        {"scaling": "zero"},
        {"scaling": (127, 128)},
        {"scaling": ((1, 2, 3), (4, 5))},
        {"scaling": ((0, 0, 0), (58, 57, 0))},
        {"scaling": ((float("nan"), 0, 0), (58, 57, 57))},
        {"scaling": ((124, 116, 104), (58, 57, 256))},
        {"scaling": ("abc", "def")},
        {"pooling": "max"},
        {"min_size": 0},
        {"min_size": 500},
        {"weights": "imagenet"},
    ],
)
def test_a_wrong_record_is_refused_with_the_field_named(change):
    with pytest.raises(PluginError, match=next(iter(change))):
        dataclasses.replace(ldl.get_backbone("cnn"), **change)


def test_a_scaling_in_shares_of_the_range_is_refused_with_the_remedy():
    shares = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(PluginError, match=r"grey levels 0\.\.255: multiply by 255\. Received: scaling=\(\(0\.485"):
        dataclasses.replace(ldl.get_backbone("cnn"), scaling=shares)
    levels = [[255 * value for value in values] for values in shares]
    spec = dataclasses.replace(ldl.get_backbone("cnn"), scaling=levels)
    assert hash(spec) == hash(dataclasses.replace(spec))
    assert spec.scaling == backbones.IMAGENET
    ldl.register_backbone(dataclasses.replace(spec, name="mine"))
    assert ldl.backbone_table().set_index("backbone").loc["mine", "scaling"].startswith("((123.675, ")


def built_in(file):
    """Return the `build` that a file defines."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module.build


def test_the_version_of_a_registered_backbone_is_given_or_follows_from_the_file_of_its_builder(tmp_path):
    def version(width, given=None, wrap=lambda build: build, **changes):
        file = tmp_path / f"made_{width}.py"
        file.write_text(f"def build(inputs, weights):\n    return {width}\n")
        build = wrap(built_in(file))
        fields = {"scaling": "unit", "native_size": 32, "min_size": 8} | changes
        spec = ldl.BackboneSpec(name="made", build=build, **fields)
        ldl.register_backbone(spec, replace=True, version=given)
        return backbones.find_backbone("made").version

    assert version(4) == version(4) == version(4, wrap=functools.partial)
    assert version(4) != version(4, wrap=lambda build: functools.partial(build, weights="mine"))
    assert version(4) != version(16)

    def of_width(width):
        return lambda build: lambda inputs, weights: build(inputs, weights) + width

    assert version(4, wrap=of_width(8)) == version(4, wrap=of_width(8)) != version(4, wrap=of_width(64))
    assert version(4).startswith("source ")
    assert len({version(4), version(4, scaling="torch"), version(4, pooling="cls")}) == 3
    assert version(4, "2") == version(16, "2") == "2"
    assert version(4).startswith("source ")
