"""Embeddings: tables and files of features read back, matched with images, and refused where they do not fit."""

import io
import logging
import pickle
import re
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import leukemia_dl as ldl
from leukemia_dl import Embeddings
from leukemia_dl.errors import DataError, SettingsError

RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(6, 3)).astype(np.float32)
SAMPLES = [f"hem/{number:03d}" for number in range(6)]
COLUMNS = [f"feature_{number}" for number in range(3)]
FRAME = pd.DataFrame(FEATURES, columns=COLUMNS).assign(sample=SAMPLES)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def has_pyarrow():
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def same(one, other):
    return (one.name, one.keys, one.digest) == (other.name, other.keys, other.digest) and np.array_equal(
        one.features, other.features
    )


def test_a_column_that_is_like_no_other_feature_is_named(caplog):
    assert Embeddings.from_frame("mine", FRAME.assign(is_blast=1.0)).features.shape == (6, 4)
    assert "'mine': columns that end in no digit are taken as features: is_blast" in caplog.text
    caplog.clear()
    Embeddings.from_frame(
        "mine", FRAME.rename(columns={name: name.replace("_", "")[:-1] + "abc"[i] for i, name in enumerate(COLUMNS)})
    )
    assert caplog.text == ""


def test_a_frame_gives_keys_and_features_in_order_without_facts():
    facts = {
        "label": "hem",
        "Label": 1.0,
        "fold": 1,
        "subject": [1, 2, 3, 4, 5, 6],
        "site": "Berlin",
        "path": SAMPLES[::-1],
    }
    found = Embeddings.from_frame("mine", FRAME.assign(**facts))
    assert found.keys == tuple(SAMPLES)
    np.testing.assert_array_equal(found.features, FEATURES)
    assert found.features.dtype == np.float32
    assert same(found, Embeddings("mine", tuple(SAMPLES), FEATURES))
    assert repr(found) == "Embeddings(name='mine')"
    assert ldl.Embeddings is ldl.models.Embeddings


def test_features_are_read_only_and_a_copy():
    own = FEATURES.copy()
    found = Embeddings("mine", tuple(SAMPLES), own)
    own[:] = 0
    np.testing.assert_array_equal(found.features, FEATURES)
    with pytest.raises(ValueError, match="read-only"):
        found.features[0, 0] = 1
    assert same(pickle.loads(pickle.dumps(found)), found)


keys_and_features = st.integers(1, 8).flatmap(
    lambda rows: st.tuples(
        st.lists(
            st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_characters='"\\/\x7f'), min_size=1),
            min_size=rows, max_size=rows, unique=True,
        ),
        hnp.arrays(
            np.float32, st.tuples(st.just(rows), st.integers(1, 4)),
            elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
        ),
    )
)  # fmt: skip


@given(keys_and_features, st.randoms())
def test_the_order_of_rows_does_not_matter_and_rows_for_inverts_it(table, random):
    keys, features = table
    one, order = Embeddings("a", tuple(keys), features), list(range(len(keys)))
    random.shuffle(order)
    other = Embeddings("a", tuple(keys[row] for row in order), features[order])
    assert one.digest == other.digest
    np.testing.assert_array_equal(other.rows_for(keys), features)
    np.testing.assert_array_equal(one.rows_for(other.keys), features[order])
    changed = features.copy()
    changed[0, 0] += 1e6
    assert Embeddings("a", tuple(keys), changed).digest != one.digest
    assert Embeddings("a", ("new", *keys[1:]), features).digest != one.digest


@given(table=keys_and_features)
def test_every_file_holds_the_same_table(tmp_path_factory, table):
    keys, features = table
    folder = tmp_path_factory.mktemp("files")
    frame = pd.DataFrame(features, columns=[f"f{column}" for column in range(features.shape[1])]).assign(sample=keys)
    frame.to_csv(folder / "a.csv", index=False)
    write_npz(folder / "a.npz", sample=np.array(keys), features=features)
    found = [Embeddings.from_csv("a", folder / "a.csv"), Embeddings.from_npz("a", folder / "a.npz")]
    if has_pyarrow():
        frame.to_parquet(folder / "a.parquet", index=False)
        found.append(Embeddings.from_parquet("a", folder / "a.parquet"))
    assert all(same(one, Embeddings.from_frame("a", frame)) for one in found)


def test_a_file_is_read_by_the_end_of_its_name(tmp_path):
    FRAME.to_csv(tmp_path / "a.CSV", index=False)
    np.savez_compressed(tmp_path / "a.npz", path=np.array(SAMPLES, dtype="S"), features=FEATURES.astype(np.float64))
    expected = Embeddings.from_frame("a", FRAME)
    assert same(Embeddings.from_file("a", tmp_path / "a.CSV"), expected)
    assert same(Embeddings.from_file("a", str(tmp_path / "a.npz")), expected)
    (tmp_path / "a.xlsx").write_bytes(b"")
    for name in ("a.xlsx", "none.npz"):
        with pytest.raises(DataError, match=f"'a' cannot be read from .*{name}: it is no file that ends in .csv"):
            Embeddings.from_file("a", tmp_path / name)


def test_keys_of_a_csv_file_stay_text(tmp_path):
    (tmp_path / "a.csv").write_text("sample,f0,fold\n007,1,2\nNA,2,2\n1.0,3,2\n", encoding="utf-8-sig")
    found = Embeddings.from_csv("a", tmp_path / "a.csv")
    assert found.keys == ("007", "NA", "1.0")
    assert found.features.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize("numbers", [[3, 1, 2], [3.0, 1.0, 2.0], np.array([3, 1, 2])])
def test_whole_numbers_are_keys(tmp_path, numbers):
    frame = pd.DataFrame({"sample": numbers, "f": [0.5, 1.5, 2.5]})
    assert Embeddings.from_frame("a", frame).keys == ("3", "1", "2")
    assert Embeddings("a", numbers, [[0], [1], [2]]).rows_for(["1", "2", "3"]).tolist() == [[1], [2], [0]]
    path = write_npz(tmp_path / "a.npz", sample=np.array([3, 1, 2]), features=np.eye(3))
    assert Embeddings.from_npz("a", path).keys == ("3", "1", "2")


def test_pandas_numbers_may_be_nullable():
    frame = FRAME.astype(dict.fromkeys(COLUMNS, "Float64"))
    assert same(Embeddings.from_frame("a", frame), Embeddings.from_frame("a", FRAME))
    frame.loc[[1, 4], "feature_1"] = pd.NA
    with pytest.raises(DataError, match="NaN or infinite values, as float32, in 2 of 6 rows: 'hem/001', 'hem/004'"):
        Embeddings.from_frame("a", frame)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (FRAME.drop(columns="sample"), "need a column sample or path, and each column once. Received: 3 columns: feat"),
        (FRAME.rename(columns={"feature_1": "feature_0"}), "each column once. Received: 4 columns: feature_0, feature"),
        (FRAME[["sample"]].assign(label="hem", fold=3), "need columns of numbers besides facts. Received: none"),
        (FRAME.assign(stain="Giemsa", ok=True), "Received: 2 that are no features: stain, ok. Drop or convert them"),
        (FRAME.reset_index(names="Unnamed: 0"), "Received: 1 that are no features: Unnamed: 0"),
        (FRAME.assign(feature_0=1j), "1 that are no features: feature_0"),
        (FRAME.iloc[:0], "a row for each key. Received: float32 (0, 3) for 0 keys"),
        (FRAME.assign(sample=["a", None, "", "b", "c", "d"]), "have 2 of 6 rows without a key. Complete or drop them"),
        (FRAME.assign(sample=list("abcabd")), "have 2 keys in several rows, such as 'a' with different features. Keep"),
        (FRAME.assign(sample=list("abcdaf"), **dict.fromkeys(COLUMNS, 1)), "1 keys in several rows, such as 'a' with "
         "equal features"),
        (FRAME.assign(feature_2=[1, np.inf, 1, 1e300, 1, np.nan]), "in 3 of 6 rows: 'hem/001', 'hem/003', 'hem/005'"),
    ],
)  # fmt: skip
def test_a_frame_that_does_not_fit_is_refused(frame, says):
    with pytest.raises(DataError, match=re.escape(says)) as refused:
        Embeddings.from_frame("mine", frame)
    assert "'mine'" in str(refused.value)
    assert str(refused.value).count("\n") == 0


@pytest.mark.parametrize("name", ["Mine", "", "-a", "a b", "../a", None])
def test_names_are_those_of_backbones(name):
    with pytest.raises(DataError, match="A name is of lower case letters"):
        Embeddings(name, tuple(SAMPLES), FEATURES)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"features": FEATURES}, "it needs arrays sample or path, and features"),
        ({"sample": SAMPLES}, "it needs arrays sample or path, and features. Found: sample"),
        ({"sample": SAMPLES[:4], "features": FEATURES}, r"Received: float32 \(6, 3\) for 4 keys"),
        ({"sample": SAMPLES, "features": FEATURES[:, 0]}, r"Received: float32 \(6,\) for 6 keys"),
        ({"sample": SAMPLES, "features": FEATURES[:, :0]}, r"Received: float32 \(6, 0\) for 6 keys"),
        ({"sample": SAMPLES, "features": FEATURES > 0}, "Received: bool"),
        ({"sample": SAMPLES, "features": FEATURES.astype(str)}, "Received: <U"),
        ({"sample": SAMPLES, "features": FEATURES * 1j}, "Received: complex64"),
        ({"sample": SAMPLES, "features": FEATURES.astype(object)}, "Object arrays cannot be loaded"),
        ({"sample": np.array(SAMPLES, object), "features": FEATURES}, "Object arrays cannot be loaded"),
        ({"sample": [SAMPLES], "features": FEATURES}, r"sample must be texts or whole numbers \(n,\). Received"),
        ({"sample": FEATURES[:, 0], "features": FEATURES}, r"sample must be texts or whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, says):
    with pytest.raises(DataError, match=says):
        Embeddings.from_npz("mine", write_npz(tmp_path / "a.npz", **arrays))


def npy(shape, content=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (npy((1 << 20, 1 << 20)), "EOF|allocate"),
        (npy((2, 3), b"\0" * 8), "EOF"),
        (b"\x93NUMPY\x01\0\xff\xff{", "EOF"),
        (b"", r"Received: \|S1 \(\)"),
        (b"\x80\x04K\x01.", "EOF|magic|Received"),
    ],
)
def test_a_damaged_npz_file_is_one_error(tmp_path, member, says):
    write_npz(tmp_path / "a.npz", sample=np.array(["a", "b"]))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("features.npy", member)
    with pytest.raises(DataError, match=says):
        Embeddings.from_npz("mine", tmp_path / "a.npz")


def test_an_array_that_unpacks_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", sample=SAMPLES, features=np.zeros((6, 4000), np.float32))
    assert Embeddings.from_npz("mine", tmp_path / "a.npz").features.shape == (6, 4000)
    monkeypatch.setattr("leukemia_dl.models.embeddings._MOST_BYTES", 50_000)
    with pytest.raises(DataError, match=r"it has arrays of 96,\d{3} bytes, more than 50,000"):
        Embeddings.from_npz("mine", tmp_path / "a.npz")


@pytest.mark.parametrize("form", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"sample,f\na,1,2\nb,1\n", b"PK\x05\x06" + b"\0" * 18])
def test_other_content_is_one_error(tmp_path, form, content):
    if form == "parquet" and not has_pyarrow():
        pytest.skip("pyarrow is not installed")
    (tmp_path / f"a.{form}").write_bytes(content)
    with pytest.raises(DataError, match="'mine'"):
        Embeddings.from_file("mine", tmp_path / f"a.{form}")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"] + ["pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"pip install 'leukemia-dl\[parquet\]'"):
        Embeddings.from_parquet("a", tmp_path / "a.parquet")


def test_a_parquet_file_that_unpacks_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"sample": range(5000), "f": 1.0}).to_parquet(tmp_path / "a.parquet")
    assert Embeddings.from_parquet("a", tmp_path / "a.parquet").features.shape == (5000, 1)
    monkeypatch.setattr("leukemia_dl.models.embeddings._MOST_BYTES", 39_999)
    with pytest.raises(DataError, match="it has arrays of 40,000 bytes, more than 39,999"):
        Embeddings.from_parquet("a", tmp_path / "a.parquet")


# Matching with the images of a data set.

PATHS = [f"/data/cells/{label}/{number}.bmp" for label in ("all", "hem") for number in range(3)]
IDS = [f"id{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("keys", "warns"),
    [
        (PATHS, ""),
        ([path.removeprefix("/data/cells/") for path in PATHS], ""),
        ([path.removeprefix("/data/") for path in PATHS], ""),
        ([path.replace("/data/cells/", "./").replace("/", "\\") for path in PATHS], ""),
        ([path.replace("/data/", "/home/me/old/") for path in PATHS], "last 3 parts of paths only, such as '/home/me/"),
        ([path.replace("/data/", "C:\\").replace("/", "\\") for path in PATHS], "last 3 parts of paths only"),
    ],
)
def test_paths_are_matched_by_their_last_parts(caplog, keys, warns):
    order = RNG.permutation(6)
    found = Embeddings("a", tuple(keys[row] for row in order), FEATURES[order])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(found.rows_for(IDS, PATHS), FEATURES)
        np.testing.assert_array_equal(found.rows_for(IDS[2:4], PATHS[2:4]), FEATURES[2:4])
    assert (warns in caplog.text) if warns else not caplog.records


def test_file_names_are_enough_if_each_is_there_once(caplog):
    names = tuple(f"{number}.bmp" for number in range(3))
    found = Embeddings("a", names, FEATURES[:3])
    np.testing.assert_array_equal(found.rows_for(IDS[:3], PATHS[:3]), FEATURES[:3])
    assert not caplog.records
    with pytest.raises(DataError, match="no features of 6 of 6 images: 'id0', 'id1', 'id2', 'id3', 'id4'; they may be"):
        found.rows_for(IDS, PATHS)
    elsewhere = Embeddings("a", ("/x/all/0.bmp", "/x/hem/0.bmp"), FEATURES[:2])
    with pytest.raises(DataError, match="a part of a path must belong to one image only"):
        elsewhere.rows_for(IDS[:1], ["/data/0.bmp"])


def test_sample_ids_come_before_paths():
    found = Embeddings("a", (*IDS, "0.bmp"), np.vstack([FEATURES, [9, 9, 9]]))
    np.testing.assert_array_equal(found.rows_for(IDS[::-1], PATHS[:6]), FEATURES[::-1])
    np.testing.assert_array_equal(found.rows_for(IDS[::-1]), FEATURES[::-1])
    np.testing.assert_array_equal(found.rows_for(pd.Series(IDS), pd.Series([pd.NA] * 6, dtype="string")), FEATURES)


def test_missing_images_are_counted_and_named():
    found = Embeddings("a", tuple(IDS[:4]), FEATURES[:4])
    message = "'a' have no features of 2 of 6 images: 'id4', 'id5'. A key is"
    with pytest.raises(DataError, match=re.escape(message)):
        found.rows_for(IDS, PATHS)
    with pytest.raises(DataError, match=r"no features of 1 of 1 images: 'x'; .* a key is 'id0', a path '/b.p'"):
        found.rows_for(["x"], ["/b.p"])


def test_images_of_a_data_set_find_their_features(tmp_path):
    from PIL import Image

    for name in ("all/1.png", "all/2.png", "hem/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    dataset = ldl.Dataset.from_folder(tmp_path)
    table = dataset.table
    by_path = Embeddings.from_frame("a", table[["path"]].assign(f=[1, 2, 3]))
    by_sample = Embeddings.from_frame("a", table[["sample"]].assign(f=[1, 2, 3]))
    whole = Embeddings.from_frame("a", table.assign(f=[1, 2, 3]))
    for found in (by_path, by_sample, whole):
        assert found.rows_for(table["sample"], table["path"]).tolist() == [[1], [2], [3]]
