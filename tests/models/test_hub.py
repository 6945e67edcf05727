"""Sharing a net: one commit with its card, the same predictions after the download, and errors that name the step."""

import json
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

import command
import hubs
import leukemia_dl as ldl
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.models import build_model

pytest.importorskip("huggingface_hub")
keras = pytest.importorskip("keras")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
ORIGIN = {
    "dataset": "synthetic", "synthetic": True, "citation": "Doe 2026", "training_images": {"hem": 1200, "all": 34},
    "threshold": {"value": 0.25, "sensitivity": 0.95},
}  # fmt: skip


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    net = build_model(ldl.get_backbone("cnn"), 32, 2)
    return ldl.Classifier(net, ("hem", "all"), ldl.Pipeline.default(32, canvas=24), ORIGIN, 1.5)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hubs.running(monkeypatch, tmp_path) as found:
        yield found


def test_a_net_comes_back_as_it_went(classifier, hub):
    expected = classifier.predict(IMAGES)
    assert hub.requests == []  # nothing is asked unasked
    address = classifier.push_to_hub("me/net", token=hubs.TOKEN, message="First")
    ((oid, files),) = hub.commits["me/net"]
    assert address.endswith(f"/me/net/commit/{oid}")
    assert (hub.private["me/net"], hub.messages) == (True, ["First"])
    assert sorted(files) == ["README.md", "model.keras"]
    hub.requests.clear()
    loaded = ldl.load_classifier("hf://me/net")
    assert {path for _, path in hub.requests} == {"/me/net/resolve/main/model.keras"}
    pd.testing.assert_frame_equal(loaded.predict(IMAGES), expected)
    assert dict(loaded.provenance) == ORIGIN
    assert loaded.temperature == 1.5


def test_the_card_says_what_the_net_is(classifier, hub):
    classifier.push_to_hub("me/net", token=hubs.TOKEN)
    card = hub.commits["me/net"][-1][1]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: keras\npipeline_tag: image-classification\n")
    assert "\n---\n\n# net\n" in card
    for line in (
        "**For research use only.**", "- Classes: hem, all", "32 x 32 pixels",
        "- Trained on: synthetic (1,200 of hem, 34 of all), synthetic cells, not real ones",
        "- Citation: Doe 2026", "- Temperature: 1.5",
        "- Threshold: 0.25 on all, for a sensitivity of 0.95 on val", 'load_classifier("hf://me/net")',
    ):  # fmt: skip
        assert line in card
    classifier.push_to_hub("me/net", token=hubs.TOKEN, card="# Of my own\n")
    assert hub.commits["me/net"][-1][1]["README.md"].decode().endswith("\n---\n\n# Of my own\n")
    classifier.push_to_hub("me/net", token=hubs.TOKEN, card="---\nlicense: mit\n---\nMine\n")
    assert hub.commits["me/net"][-1][1]["README.md"] == b"---\nlicense: mit\n---\nMine\n"


def test_nothing_is_added_to_a_public_repository_by_mistake(classifier, hub):
    classifier.push_to_hub("me/open", token=hubs.TOKEN, private=False)
    assert not hub.private["me/open"]
    with pytest.raises(SettingsError, match="me/open is there and public: pass private=False"):
        classifier.push_to_hub("me/open", token=hubs.TOKEN)
    assert len(hub.commits["me/open"]) == 1


def test_a_revision_stays_what_it_was(classifier, hub):
    classifier.push_to_hub("me/net", token=hubs.TOKEN)
    other = ldl.Classifier(classifier.model, ("hem", "all"), classifier.pipeline, {}, 3.0)
    other.push_to_hub("me/net", token=hubs.TOKEN, private=False)  # which is the wish for a new one only
    assert hub.private["me/net"]
    first, second = (oid for oid, _ in hub.commits["me/net"])
    assert ldl.load_classifier("hf://me/net").temperature == 3.0
    assert ldl.load_classifier(f"hf://me/net@{first}").temperature == 1.5
    assert ldl.load_classifier(f"hf://me/net@{second}").temperature == 3.0


def test_the_command_takes_an_address(classifier, hub, write_image, tmp_path):
    classifier.push_to_hub("me/net", token=hubs.TOKEN)
    write_image(tmp_path / "cell.png")
    answer = command.run("predict", "hf://me/net", tmp_path / "cell.png", "--output", tmp_path / "found.csv")
    assert answer.returncode == 0, answer.stderr
    expected = classifier.predict(tmp_path / "cell.png")
    assert pd.read_csv(tmp_path / "found.csv")["predicted"].tolist() == expected["predicted"].tolist()


@pytest.mark.parametrize("address", ["hf://net", "hf://a/b/c", "hf://a b/c", "hf://", "hf://a/b@", "hf://../../etc"])
def test_other_addresses_are_refused_without_a_request(hub, address):
    with pytest.raises(SettingsError, match="A net on the hub is hf://owner/name"):
        ldl.load_classifier(address)
    assert hub.requests == []


def test_what_the_hub_does_not_have_is_named(classifier, hub):
    with pytest.raises(DataError, match=r"hf://me/other cannot be read: .*log in by `hf auth login`"):
        ldl.load_classifier("hf://me/other")
    hub.commits["me/empty"] = []
    with pytest.raises(DataError, match="hf://me/empty cannot be read"):
        ldl.load_classifier("hf://me/empty")
    hub.commit("me/empty", {"README.md": b""})
    with pytest.raises(DataError, match="hf://me/empty cannot be read"):
        ldl.load_classifier("hf://me/empty")
    hub.commit("me/empty", {"model.keras": b"no net"})
    with pytest.raises(DataError, match="is damaged or was not saved by leukemia_dl"):
        ldl.load_classifier("hf://me/empty")
    hub.commit("me/empty", {"model.keras": hubs.large()})
    hub.requests.clear()
    with pytest.raises(DataError, match="has 5,368,709,120 bytes, more than 4,294,967,296: it was not downloaded"):
        ldl.load_classifier("hf://me/empty")
    assert {method for method, _ in hub.requests} == {"HEAD"}


def test_code_on_the_hub_is_not_run(classifier, hub, tmp_path):
    seen = tmp_path / "seen"
    layer = keras.layers.Lambda(lambda x, path=str(seen): (open(path, "w").close(), x)[1], output_shape=(8, 8, 3))  # noqa: PTH123
    net = keras.Sequential([keras.Input((8, 8, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(2)])
    net.save(tmp_path / "model.keras")
    seen.unlink(missing_ok=True)
    settings = {"format": 2, "class_names": ["a", "b"], "pipeline": ldl.Pipeline(()).to_dict(), "provenance": {}}
    with zipfile.ZipFile(tmp_path / "model.keras", "a") as archive:
        archive.writestr("leukemia_dl.json", json.dumps(settings))
    hub.commits["me/evil"] = []
    hub.commit("me/evil", {"model.keras": (tmp_path / "model.keras").read_bytes()})
    with pytest.raises(DataError, match=r"Lambda|safe_mode"):
        ldl.load_classifier("hf://me/evil")
    assert not seen.exists()


def test_a_refused_upload_says_so_and_not_the_token(classifier, hub):
    for token in (None, "hf_wrong_one", "hf_with_a_line_end\n"):
        with pytest.raises(DataError, match="me/net cannot be written") as caught:
            classifier.push_to_hub("me/net", token=token)
        told = f"{caught.value} {caught.value.__cause__!r}"
        assert "hf auth login" in told
        assert token is None or token.strip() not in told
    with pytest.raises(SettingsError, match="cannot be written"):
        classifier.push_to_hub("no name/with/slashes", token=hubs.TOKEN)
    assert hub.commits == {}


def test_offline_the_cache_answers(classifier, hub, monkeypatch):
    from huggingface_hub import constants

    classifier.push_to_hub("me/net", token=hubs.TOKEN)
    ldl.load_classifier("hf://me/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert ldl.load_classifier("hf://me/net").temperature == 1.5
    with pytest.raises(DataError, match="hf://me/never cannot be read"):
        ldl.load_classifier("hf://me/never")
    assert hub.requests == []


def test_without_the_package_the_extra_is_named(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SettingsError, match=r"pip install 'leukemia-dl\[hub\]'"):
        classifier.push_to_hub("me/net")
    with pytest.raises(SettingsError, match=r"pip install 'leukemia-dl\[hub\]'"):
        ldl.load_classifier("hf://me/net")
