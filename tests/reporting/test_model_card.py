"""Model cards: what is known is filled in, what is not is named, and no name becomes markup."""

import re

import pytest

import leukemia_dl as ldl
import stores
from leukemia_dl.errors import StoreError, UnknownNameError
from leukemia_dl.reporting import model_card, write_model_cards

# Of TRIPOD+AI's 27 items, those that are about a paper's text and not about the model.
_OF_THE_PAPER = {2, 25}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = tmp_path_factory.mktemp("cards")
    return stores.made_up(store, stores.cells(400, 60), ["cnn", "vgg16"], failed=[1])


def test_there_is_a_card_for_each_trained_net(made):
    results = made.results()
    (path,) = write_model_cards(made.store.root)
    assert path == made.store.root / "cards" / f"{results['trial'][0]}.md"
    assert path.read_text() == model_card(made.store.root, results["trial"][0])


def test_what_is_known_is_filled_in(made):
    row = made.results().iloc[0]
    text = model_card(made.store.root, row["trial"])
    own = made.predictions()
    found = ldl.evaluate(own[own["trial"] == row["trial"]], metrics=["accuracy", "auroc"]).set_index("metric")
    for name in ("accuracy", "auroc"):
        value, low, high = found.loc[name, ["value", "low", "high"]]
        assert f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} |" in text
    assert f"| train | {row['n_train']} | {row['groups_train']} |" in text
    assert "Protocol holdout" in text
    assert "synthetic cells, drawn by a program" in text
    assert "'step': 'Resize', 'size': 32" in text
    assert "Cite: Drawn by a test." in text
    assert f"a temperature of {row['temperature']:.3f} was fitted" in text


def test_what_is_not_known_is_named_and_every_item_has_its_place(made):
    text = model_card(made.store.root, made.results()["trial"][0])
    assert len(re.findall(r"\*unknown", text)) >= 6
    numbered = {int(number) for group in re.findall(r"\(([0-9a-z, ]*\d[0-9a-z, ]*)\)", text) for number in
                re.findall(r"\b(\d{1,2})[a-g]?\b", group)}  # fmt: skip
    assert set(range(1, 28)) - _OF_THE_PAPER <= numbered
    assert not re.search(r"\bNone\b|\bnan\b|<NA>", text)


def test_names_are_no_markup(tmp_path):
    dataset = stores.cells(classes=["<script>x</script>", "a|b"], title="**bold** [link](http://x)")
    made = stores.made_up(tmp_path, dataset, ["cnn"])
    text = model_card(tmp_path, made.results()["trial"][0])
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\\*\\*bold\\*\\* \\[link\\](http://x)" in text


def test_without_subjects_and_with_many_classes_it_is_whole(tmp_path):
    dataset = stores.cells(200, subjects=0, classes=["a", "b", "c"])
    made = stores.made_up(tmp_path, dataset, ["cnn"], protocol="random", allow_leakage=True)
    text = model_card(tmp_path, made.results()["trial"][0])
    assert "images, taken as independent" in text
    assert "| sensitivity |" not in text


def test_what_is_not_there_is_refused(made, tmp_path):
    with pytest.raises(UnknownNameError, match="trained net"):
        model_card(made.store.root, "cnn")
    with pytest.raises(StoreError, match="is not the store of a benchmark"):
        write_model_cards(tmp_path)


def test_a_card_names_no_folder_and_is_written_into_the_store_only(tmp_path):
    made = stores.made_up(tmp_path / "s", stores.cells(), ["cnn"])
    settings = stores.run_folder(tmp_path / "s") / "settings.toml"
    settings.write_text(settings.read_text().replace("[recipe]", '[recipe]\nweights = "/home/alice/w.h5"'))
    text = model_card(tmp_path / "s", made.results()["trial"][0])
    assert "alice" not in text
    assert "| weights | w.h5 |" in text
    (tmp_path / "out").mkdir()
    (tmp_path / "s" / "cards").symlink_to(tmp_path / "out")
    with pytest.raises(StoreError, match="leads out of the store"):
        write_model_cards(tmp_path / "s")
    assert not list((tmp_path / "out").iterdir())
