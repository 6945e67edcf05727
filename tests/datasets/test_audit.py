"""The audit finds what is known to be wrong with real data, and what we make wrong, and nothing else."""

import hashlib
import json
import os
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cells import draw_cell
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.audit import audit, cell_key, same_cell, same_cells


def of_kind(report, kind):
    return report.findings[report.findings["kind"] == kind]


def pairs(report, kind):
    return {frozenset((row.sample, row.other)) for row in of_kind(report, kind).itertuples()}


def kinds(report):
    return dict(Counter(report.findings["kind"]))


def dataset_of(rows, folder, class_names=("hem", "all")):
    """Make a data set of (path, label, further columns) and take no notice of what the balance says of so few."""
    frame = pd.DataFrame(rows)
    return Dataset.from_dataframe(frame, images_root=folder, class_names=class_names)


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


@pytest.fixture(scope="module")
def tree_report(c_nmc_tree):
    return audit(Dataset.load("c_nmc_2019", root=c_nmc_tree), show_progress=False)


@pytest.fixture(scope="module")
def sample_report(c_nmc_sample):
    return audit(Dataset.load("c_nmc_2019", root=c_nmc_sample), show_progress=False)


def test_all_names_of_c_nmc_give_the_known_identical_pairs(tree_report, c_nmc_manifest):
    def sample(path):
        folder, name = path.split("/")[-2:]
        short = {"C-NMC_test_final_phase_data": "final/", "C-NMC_test_prelim_phase_data": "prelim/"}
        return short.get(folder, "") + name.removesuffix(".bmp")

    lines = (c_nmc_manifest / "byte_identical.tsv").read_text().splitlines()
    known = {frozenset(map(sample, line.split("\t"))) for line in lines}
    assert len(known) == 106
    assert pairs(tree_report, "identical_files") == known
    found = of_kind(tree_report, "identical_files")
    assert len(found) == 106
    across = found[found["detail"].str.contains("folds")]
    assert len(across) == 94
    assert set(across["severity"]) == {"error"}
    assert set(found["severity"][~found.index.isin(across.index)]) == {"warning", "note"}
    assert not found["detail"].str.contains("labels|splits").any()


def test_the_stand_in_files_are_named_as_unreadable_once_each(tree_report):
    unreadable = of_kind(tree_report, "unreadable")
    assert len(unreadable) == unreadable["sample"].nunique() == 15_114
    assert not tree_report.images["readable"].any()
    assert set(tree_report.findings["kind"]) == {"unreadable", "identical_files"}, "and all counts are as declared"
    declared = tree_report.counts.dropna(subset="declared")
    assert len(declared) == 7
    assert (declared["count"] == declared["declared"]).all()


def test_the_real_sample_has_exactly_three_cells_twice(sample_report):
    assert pairs(sample_report, "same_cell") == {
        frozenset({"UID_H10_1_1_hem", "UID_h3_1_1_hem"}),
        frozenset({"UID_H2_1_1_hem", "UID_H6_1_1_hem"}),
        frozenset({"UID_H2_1_2_hem", "UID_H6_1_2_hem"}),
    }
    found = of_kind(sample_report, "same_cell")
    assert len(found) == 3
    assert set(found["severity"]) == {"error"}
    assert found["detail"].str.contains("crosses folds [01] and 2, subjects H").all()
    assert set(sample_report.findings["kind"]) == {"same_cell", "count"}
    assert not sample_report.ok
    assert sample_report.images["single_cell"].all()
    assert (sample_report.images["height"] == 600).sum() == 4, "sizes are odd within a split only"
    folds = sample_report.counts[sample_report.counts["of"] == "fold"]
    assert list(folds["count"]) == [21, 13, 20]
    assert list(folds["declared"]) == [3527, 3581, 3553]


def test_parts_that_are_not_there_at_all_are_counted(c_nmc_sample):
    whole = Dataset.load("c_nmc_2019", root=c_nmc_sample)
    part = Dataset(whole.table[whole.table["fold"].fillna(9) == 0], whole.class_names, whole.info)
    report = audit(part, show_progress=False)
    counts = report.counts.set_index(["of", "name"])["count"].to_dict()
    assert counts["fold", "0"] == counts["split", "train"] == counts["total", "images"] == 21
    assert counts["fold", "1"] == counts["fold", "2"] == counts["split", "final"] == counts["total", "unlabelled"] == 0
    assert kinds(report) == {"count": 7}
    assert report.ok


@pytest.mark.parametrize("name", ["aria", "wbc"])
def test_identical_files_of_other_real_data(name, request):
    root = request.getfixturevalue(f"{name}_sample")
    if name == "aria":
        dataset = Dataset.load("folder", root=root)
    else:
        table = pd.read_csv(root / "class_labels.csv")
        files = [f"{number:03d}.bmp" for number in table["image ID"]]
        dataset = dataset_of({"path": files, "label": table["class label"].astype(str)}, root, class_names=None)
    report = audit(dataset, show_progress=False)
    contents = {}
    for path in dataset.paths:
        contents.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path.relative_to(root).as_posix())
    found = pairs(report, "identical_files")
    assert all(any(two <= set(files) for files in contents.values()) for two in found)
    assert len(found) == len(dataset) - len(contents) > 0
    assert report.images["readable"].all()
    assert pairs(report, "same_cell") == set()
    assert ("mixed_sizes" in kinds(report)) == (name == "wbc")
    assert "no_subjects" in kinds(report)


def test_damaged_files_are_named_once_and_stop_nothing(tmp_path, write_image):
    good = [write_image(tmp_path / "hem" / f"good{n}.png", n, 64) for n in range(3)]
    cut, text, empty, pipe, gone, folder = (tmp_path / "all" / f"{n}.png" for n in range(6))
    for number, path in enumerate((cut, text, empty, pipe, gone, folder), start=10):
        write_image(path, number, 64)
    dataset = Dataset.load("folder", root=tmp_path)
    cut.write_bytes(cut.read_bytes()[:500])
    text.write_text("no image")
    empty.write_bytes(b"")
    for path in (pipe, gone, folder):
        path.unlink()
    os.mkfifo(pipe)
    folder.mkdir()
    report = audit(dataset, show_progress=False)
    named = of_kind(report, "unreadable").set_index("sample")["detail"]
    assert sorted(named.index) == [f"all/{n}.png" for n in range(6)]
    assert "regular file" in named["all/3.png"]
    assert "No such file" in named["all/4.png"]
    assert report.images["readable"].sum() == len(good)
    assert report.images["sha256"].notna().sum() == len(good) + 3, "what can be read has a hash, image or not"
    assert not report.ok


def test_a_real_file_that_is_cut_off_is_named_and_its_twin_is_not(c_nmc_sample, tmp_path):
    real = sorted(c_nmc_sample.rglob("UID_1_1_1_all.bmp"))[0]
    for label in ("hem", "all"):
        shutil.copy(real, save(tmp_path / label / "a.bmp", draw_cell()))
    (tmp_path / "all" / "a.bmp").write_bytes(real.read_bytes()[:-1000])
    report = audit(Dataset.load("folder", root=tmp_path), show_progress=False)
    assert list(of_kind(report, "unreadable")["sample"]) == ["all/a.bmp"]
    assert pairs(report, "same_cell") == pairs(report, "identical_files") == set()


def test_odd_sizes_modes_and_blank_images(tmp_path, write_image):
    for number in range(20):
        write_image(tmp_path / ("hem" if number % 2 else "all") / f"{number:02d}.png", number, 32)
    odd = write_image(tmp_path / "hem" / "odd.png", 99, 33)
    grey = tmp_path / "hem" / "grey.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)).save(grey)
    save(tmp_path / "hem" / "black.png", np.zeros((32, 32, 3), np.uint8))
    save(tmp_path / "hem" / "white.png", np.full((32, 32, 3), 255, np.uint8))
    camera = np.random.default_rng(2).integers(0, 17, (32, 32, 3), dtype=np.uint8)
    save(tmp_path / "hem" / "camera.png", camera)
    report = audit(Dataset.load("folder", root=tmp_path), show_progress=False)
    assert list(of_kind(report, "odd_size")["sample"]) == [f"hem/{odd.name}"]
    assert "33 x 33" in of_kind(report, "odd_size")["detail"].iloc[0]
    assert list(of_kind(report, "odd_mode")["sample"]) == ["hem/grey.png"]
    assert sorted(of_kind(report, "blank")["sample"]) == ["hem/black.png", "hem/white.png"]
    assert list(of_kind(report, "no_cell")["sample"]) == ["hem/grey.png"]
    assert list(of_kind(report, "nearly_black")["sample"]) == ["hem/camera.png"]
    found = {"odd_size": 1, "odd_mode": 1, "blank": 2, "nearly_black": 1, "no_cell": 1, "no_subjects": 1}
    assert kinds(report) == found
    assert report.ok


def test_one_size_per_split_is_not_odd(tmp_path, write_image):
    for number in range(20):
        side = "train" if number < 18 else "test"
        write_image(
            tmp_path / side / ("hem" if number % 2 else "all") / f"{number}.png", number, 32 if number < 18 else 48
        )
    assert "odd_size" not in kinds(audit(Dataset.load("folder", root=tmp_path), show_progress=False))


@pytest.mark.parametrize("same", ["file", "cell"])
@pytest.mark.parametrize(
    ("one", "two", "crossed", "severities"),
    [
        ({"label": "hem"}, {"label": "all"}, "labels hem and all", ("error", "error")),
        ({"split": "train"}, {"split": "test"}, "splits train and test", ("error", "error")),
        ({"fold": 0}, {"fold": 2}, "folds 0 and 2", ("error", "error")),
        ({"subject": "a"}, {"subject": "b"}, "subjects a and b", ("warning", "error")),
        ({"subject": "a", "group": "g"}, {"subject": "b", "group": "g"}, "subjects a and b", ("warning", "warning")),
        ({"subject": "a"}, {"subject": "a"}, "", ("note", "note")),
        ({"subject": "a"}, {}, "", ("note", "note")),
        ({}, {}, "", ("note", "note")),
    ],
)
def test_what_a_pair_crosses_says_how_bad_it_is(tmp_path, same, one, two, crossed, severities):
    first = save(tmp_path / "1.png", draw_cell())
    second = save(tmp_path / "2.png", draw_cell()) if same == "file" else save(tmp_path / "2.bmp", draw_cell())
    rows = [{"path": str(p), "label": "hem", **what} for p, what in ((first, one), (second, two))]
    report = audit(dataset_of(rows, tmp_path), show_progress=False)
    kind, other = ("identical_files", "same_cell") if same == "file" else ("same_cell", "identical_files")
    (found,) = of_kind(report, kind).itertuples()
    assert {found.sample, found.other} == {"1.png", second.name}
    assert found.detail.startswith(f"crosses {crossed}" if crossed else "no known difference of label, side or patient")
    assert "groups" not in found.detail, "groups that say the same as the subjects are not named"
    assert found.severity == severities[same == "cell"]
    assert len(of_kind(report, other)) == 0


@pytest.mark.parametrize(("copies", "number"), [(3, 3), (20, 190), (21, 20)])
@pytest.mark.parametrize("kind", ["identical_files", "same_cell"])
def test_sets_of_equal_images_give_pairs(tmp_path, copies, number, kind):
    for copy in range(copies):
        pixels = draw_cell()
        if kind == "same_cell":
            pixels[180, 180, 0] += copy
        save(tmp_path / ("all" if copy == copies - 1 else "hem") / f"{copy}.bmp", pixels)
    report = audit(Dataset.load("folder", root=tmp_path), show_progress=False)
    found = of_kind(report, kind)
    assert len(found) == len(pairs(report, kind)) == number
    assert set(found["sample"]) | set(found["other"]) == set(report.images["sample"])
    assert "error" in set(found["severity"]), "one of them has another label"


def test_a_copy_without_a_side_hides_no_crossing(tmp_path, write_image):
    rows = [("a", "train"), ("a", None), (None, "test")]
    table = pd.DataFrame(rows, columns=["label", "split"])
    table["path"] = [write_image(tmp_path / f"{row}.png", 1).name for row in range(3)]
    other = {"path": write_image(tmp_path / "other.png", 2).name, "label": "b", "split": "train"}
    table = pd.concat([table, pd.DataFrame([other])], ignore_index=True)
    report = audit(Dataset.from_dataframe(table, images_root=tmp_path), show_progress=False)
    assert not report.ok
    assert of_kind(report, "identical_files")["detail"].str.contains("splits train and test").sum() == 1


@pytest.mark.parametrize("unknown", ["first", "last", "between"])
def test_a_large_set_of_equal_files_hides_no_error(tmp_path, write_image, unknown):
    """Not all are paired; the folds that they cross are found all the same."""
    folds = {"first": [None, 0, 1], "last": [0, 1, None], "between": [0, None, 1]}[unknown]
    rows = []
    for number in range(24):
        path = write_image(tmp_path / f"{number}.png", 1)
        fold = folds[number * 3 // 24]
        rows.append({"path": path.name, "label": "a", "subject": f"s{number}", "fold": fold})
    rows.append({"path": write_image(tmp_path / "other.png", 2).name, "label": "b", "subject": "t", "fold": 0})
    dataset = Dataset.from_dataframe(pd.DataFrame(rows), images_root=tmp_path)
    assert not audit(dataset, show_progress=False).ok


def test_copies_of_copies_are_named_under_both_kinds(tmp_path):
    save(tmp_path / "hem" / "a.bmp", draw_cell())
    save(tmp_path / "hem" / "b.bmp", draw_cell())
    save(tmp_path / "all" / "c.png", draw_cell())
    report = audit(Dataset.load("folder", root=tmp_path), show_progress=False)
    assert pairs(report, "identical_files") == {frozenset({"hem/a.bmp", "hem/b.bmp"})}
    assert pairs(report, "same_cell") == {frozenset({"all/c.png", f"hem/{name}.bmp"}) for name in "ab"}
    assert set(of_kind(report, "same_cell")["severity"]) == {"error"}


def test_subjects_of_several_classes(tmp_path, write_image):
    rows = []
    for number in range(30):
        subject = f"P{number % 9}" if number < 20 else "p0 " if number < 25 else "Q"
        path = write_image(tmp_path / f"{number}.png", number, 32)
        rows.append({"path": str(path), "label": "all" if number >= 23 else "hem", "subject": subject})
    report = audit(dataset_of(rows, tmp_path), show_progress=False)
    assert kinds(report) == {"subject_of_several_classes": 1}
    assert report.findings["detail"].tolist() == ["subject p0 has 6 hem, 2 all"]
    assert report.ok


def test_what_is_not_checked_is_said(sample_report, tmp_path, write_image):
    """20.22: a set whose test images are turned copies of its training images is not said to be without faults."""
    for side, turn in (("train", 0), ("test", 1)):
        for number in range(10):
            path = write_image(tmp_path / side / ("hem" if number % 2 else "all") / f"{number}.png", number, 32)
            Image.fromarray(np.rot90(np.asarray(Image.open(path)), turn)).save(path)
    report = audit(Dataset.load("folder", root=tmp_path), show_progress=False)
    assert report.ok
    text = "Not checked: copies of an image that were turned, mirrored, recoloured, resized or stored again with loss"
    assert text in str(report)
    assert "where images are not single cells on exactly black background (20 of 20 images)" in str(report)
    assert report.to_dict()["not_checked"] == list(report.not_checked)
    assert len(sample_report.not_checked) == 1
    assert text in str(sample_report)


def test_counts_of_the_whole_do_not_count_against_one_part(wbc_sample):
    """20.22: part 1 of segmentation_WBC has 300 images, not 400, and no part 2."""
    report = audit(Dataset.load("segmentation_wbc", root=wbc_sample), show_progress=False)
    declared = report.counts.set_index("name")["declared"].dropna()
    assert declared.to_dict() == {"images": 300}


def test_the_report_prints_in_short_and_becomes_json(sample_report, tree_report):
    text = str(sample_report)
    assert text.splitlines()[0] == "Audit of 'c_nmc_2019': 60 images, 3 errors, 7 warnings, 0 notes"
    assert "UID_H10_1_1_hem = UID_h3_1_1_hem: crosses folds 1 and 2, subjects H10 and H3" in text
    assert "images: 60 of 15,114" in text
    assert len(str(tree_report).splitlines()) < 30, "of 15,220 findings"
    assert "and 15,111 more" in str(tree_report)
    plain = json.loads(json.dumps(sample_report.to_dict(), allow_nan=False))
    assert plain["ok"] is False
    assert [len(plain[key]) for key in ("findings", "images")] == [10, 60]
    assert plain["findings"][0]["kind"] == "same_cell"
    assert plain["images"][0]["height"] in (450, 600)
    rank = sample_report.findings["severity"].map({"error": 0, "warning": 1, "note": 2})
    assert rank.is_monotonic_increasing


def test_names_of_strangers_neither_steer_the_terminal_nor_stop_the_audit(tmp_path, write_image):
    write_image(tmp_path / "hem" / "1.png", 1)
    write_image(tmp_path / "all" / "2.png", 2)
    for name in (b"\xff.png", b"a\x1b[31m\n.png"):
        shutil.copy(tmp_path / "hem" / "1.png", os.fsencode(tmp_path / "all") + b"/" + name)
    report = audit(Dataset.load("folder", root=tmp_path), show_progress=False)
    assert len(pairs(report, "identical_files")) == 3
    assert "\x1b" not in str(report)
    str(report).encode("utf-8")
    assert str(report).count("\n") + 1 == len(str(report).splitlines())


@pytest.mark.parametrize("number", range(5))
def test_a_cell_is_known_again_wherever_it_lies(number):
    place = np.random.default_rng(number).integers(0, 290, 2)
    one, two = draw_cell(number), draw_cell(number, 600, *place)
    assert same_cell(one, two)
    assert same_cells([cell_key(one), cell_key(two)], ["x", "y"], [one, two].__getitem__) == [[0, 1]]
    assert same_cells([cell_key(one), cell_key(two)], ["x", "x"], [one, two].__getitem__) == []


def test_cells_that_only_look_alike_are_not_the_same():
    cell = draw_cell()
    brighter = draw_cell(level=2)
    other = draw_cell(number=1)
    bitten = cell.copy()
    rows, columns = np.mgrid[:450, :450]
    bitten[rows + columns < 280] = 0  # between the extremes of its outline, so its box stays
    assert cell_key(bitten)[:2] == cell_key(cell)[:2]
    assert 0.96 < cell_key(bitten).area / cell_key(cell).area < 0.995
    assert not same_cell(cell, brighter)
    assert not same_cell(cell, other)
    assert not same_cell(cell, bitten)
    assert same_cell(cell, draw_cell(level=0))
    images = [cell, brighter, other, bitten]
    assert same_cells([cell_key(image) for image in images], list("abcd"), images.__getitem__) == []
    speckled = cell.copy()
    speckled[::7, ::7] += (cell[::7, ::7] > 0).astype(np.uint8) * 3
    assert same_cells([cell_key(cell), cell_key(speckled)], list("ab"), [cell, speckled].__getitem__) == [[0, 1]]


def test_only_likely_images_are_decoded_again():
    images = [draw_cell(number) for number in range(40)]
    asked = []

    def decode(row):
        asked.append(row)
        return images[row]

    assert same_cells([cell_key(image) for image in images], [str(n) for n in range(40)], decode) == []
    assert asked == [], "same box and area, other colours"
    assert cell_key(np.full((32, 32, 3), 200, np.uint8)) is None
    assert cell_key(np.zeros((32, 32, 3), np.uint8)) is None
