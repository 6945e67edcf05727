from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from leukemia_dl.datasets import synthetic
from leukemia_dl.datasets.synthetic import LATENTS, SyntheticCohort, draw_cell, draw_cohort, write_dataset
from leukemia_dl.errors import DataError, SettingsError

SMALL = SyntheticCohort(subjects=12, images=40, preliminary_images=12, final_images=3, seed=3)
TRAINING = Path("C-NMC_Leukemia/training_data")
PRELIMINARY = Path("C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data")
FINAL = Path("C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "cells", SMALL, workers=2, show_progress=False)


@pytest.fixture(scope="module")
def calibration() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "synthetic_calibration.py"
    spec = importlib.util.spec_from_file_location("synthetic_calibration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(calibration: ModuleType) -> list[pd.DataFrame]:
    return [calibration.measure_cohort(SyntheticCohort(subjects=73, images=292, seed=seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def summary(calibration: ModuleType, measured: list[pd.DataFrame]) -> pd.Series:
    return pd.DataFrame([calibration.summarise(frame, seed) for seed, frame in enumerate(measured)]).mean()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class TestCohort:
    def test_has_the_images_that_were_asked_for(self) -> None:
        settings = SyntheticCohort()
        cohort = draw_cohort(settings)
        sides = cohort["side"].value_counts()
        assert (sides["train"], sides["preliminary"], sides["final"]) == (360, 60, 12)
        train = cohort[cohort["side"] == "train"]
        assert train["subject"].nunique() == 73
        assert (train["label"] == "all").mean() == pytest.approx(0.682, abs=0.01)
        assert cohort["sample"].is_unique

    @pytest.mark.parametrize(
        "settings", [SyntheticCohort(), SMALL, SyntheticCohort(subjects=73, images=10661, preliminary_images=1867)]
    )
    @pytest.mark.parametrize("seed", range(5))
    def test_subjects_have_one_class_one_side_one_fold(self, settings: SyntheticCohort, seed: int) -> None:
        cohort = draw_cohort(dataclasses.replace(settings, seed=seed))
        by_subject = cohort.groupby("subject")
        assert (by_subject["label"].nunique() == 1).all()
        assert (by_subject["side"].nunique() == 1).all()
        assert (by_subject["fold"].nunique(dropna=False) == 1).all()
        is_hem = cohort["subject"].str.startswith("H")
        assert (is_hem == (cohort["label"] == "hem")).all()
        assert cohort["fold"].notna().equals(cohort["side"] == "train")
        assert (by_subject.size()[cohort.loc[cohort["side"] != "final", "subject"]] >= 2).all()
        assert (cohort.groupby("side")["label"].nunique() == 2).all()

    @pytest.mark.parametrize("seed", range(10))
    def test_folds_are_alike(self, seed: int) -> None:
        train = draw_cohort(SyntheticCohort(seed=seed)).query("side == 'train'")
        subjects = train.groupby(["fold", "label"])["subject"].nunique().unstack()
        assert subjects["hem"].min() >= 4
        assert subjects["all"].min() >= 8
        images = train.groupby(["fold", "label"]).size().unstack()
        assert images.sum(axis=1).max() <= 1.35 * images.sum(axis=1).min()
        shares = images["all"] / images.sum(axis=1)
        assert shares.between(0.58, 0.78).all()

    def test_counts_are_as_unequal_as_the_real_ones(self) -> None:
        cohorts = [draw_cohort(SyntheticCohort(subjects=73, images=10661, seed=seed)) for seed in range(10)]
        counts = [c[c["side"] == "train"].groupby("subject").size() for c in cohorts]
        # C-NMC: 9 to 757 around a mean of 146, standard deviation 127.
        assert 5 <= np.mean([count.min() for count in counts]) <= 35
        assert 450 <= np.mean([count.max() for count in counts]) <= 1300
        assert 90 <= np.mean([count.std() for count in counts]) <= 220

    def test_fields_and_cells_are_numbered_from_one(self) -> None:
        cohort = draw_cohort(SyntheticCohort())
        for _, fields in cohort.groupby("subject", sort=False):
            assert sorted(fields["field"].unique()) == list(range(1, fields["field"].max() + 1))
            for _, field in fields.groupby("field"):
                assert field["cell"].tolist() == list(range(1, len(field) + 1))

    def test_seed_decides(self) -> None:
        pd.testing.assert_frame_equal(draw_cohort(SMALL), draw_cohort(SMALL))
        other = draw_cohort(dataclasses.replace(SMALL, seed=4))
        assert not np.array_equal(other["log_area"], draw_cohort(SMALL)["log_area"])

    def test_areas_follow_the_real_distributions(self) -> None:
        cohorts = pd.concat([draw_cohort(SyntheticCohort(subjects=73, images=2190, seed=s)) for s in range(30)])
        area = np.exp(cohorts["log_area"])
        for label, mean, sd in (("hem", 26_544, 7_762), ("all", 36_244, 7_176)):
            values = area[cohorts["label"] == label]
            # What sticks to the cells adds 1.5 % of pixels when they are drawn.
            assert 1.015 * values.mean() == pytest.approx(mean, rel=0.025)
            assert values.std() == pytest.approx(sd, rel=0.06)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"subjects": 11}, "at least 12"),
            ({"subjects": 40, "images": 119}, "from 120 to 100,000"),
            ({"preliminary_images": 11}, "from 12 to 100,000"),
            ({"final_images": 1}, "from 2 to 100,000"),
            ({"seed": -1}, "at least 0"),
            ({"images": 360.0}, "must be a whole number"),
            ({"seed": True}, "must be a whole number"),
        ],
    )
    def test_settings_are_checked(self, values: dict[str, int], said: str) -> None:
        with pytest.raises(SettingsError, match=said) as caught:
            SyntheticCohort(**values)
        assert "Received" in str(caught.value)

    def test_numbers_of_numpy_are_those_of_python(self) -> None:
        numpy = SyntheticCohort(subjects=np.int64(12), images=np.int32(40), seed=np.uint8(3))
        python = SyntheticCohort(subjects=12, images=40, seed=3)
        assert json.dumps(dataclasses.asdict(numpy)) == json.dumps(dataclasses.asdict(python))


class TestCell:
    def test_is_deterministic_and_depends_on_sample_and_seed(self) -> None:
        row = draw_cohort(SMALL).iloc[0]
        first = draw_cell(row, 0)
        assert first.shape == (450, 450, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, draw_cell(row.to_dict(), 0))
        assert not np.array_equal(first, draw_cell(row, 1))
        assert not np.array_equal(first, draw_cell({**row.to_dict(), "sample": "UID_1_99_1_all"}, 0))

    def test_has_the_area_of_its_row_and_lies_in_the_middle(self) -> None:
        for row in draw_cohort(SMALL).head(20).to_dict("records"):
            mask = draw_cell(row, SMALL.seed).any(axis=2)
            assert mask.sum() / np.exp(row["log_area"]) == pytest.approx(1.05, abs=0.075)
            middle = np.argwhere(mask).mean(axis=0)
            assert np.abs(middle - 225).max() < 30
            assert not mask[[0, -1]].any()
            assert not mask[:, [0, -1]].any()

    @pytest.mark.parametrize("log_area", [np.log(9_000), np.log(70_000)])
    @pytest.mark.parametrize("size", [450, 600])
    def test_extremes_can_be_drawn(self, log_area: float, size: int) -> None:
        for number in range(6):
            row = {"sample": f"UID_1_1_{number}_all", "log_area": log_area, "texture": 4.5}
            row |= dict.fromkeys(("hue", "brightness", "grain", "blur"), -4.5 if number % 2 else 4.5)
            image = draw_cell(row, 0, size)
            assert image.shape == (size, size, 3)
            assert image.any(axis=2).sum() > 0.85 * np.exp(log_area)

    def test_scale_does_not_depend_on_the_frame(self) -> None:
        row = draw_cohort(SMALL).iloc[0]
        assert draw_cell(row, 0).any(axis=2).sum() == pytest.approx(draw_cell(row, 0, 600).any(axis=2).sum(), rel=0.01)

    def test_colours_are_those_of_stained_cells(self) -> None:
        means = []
        for row in draw_cohort(SMALL).head(30).to_dict("records"):
            image = draw_cell(row, SMALL.seed)
            means.append(image[image.any(axis=2)].mean(axis=0))
        assert np.abs(np.mean(means, axis=0) - (70, 30, 80)).max() < 8

    def test_latent_values_show(self) -> None:
        row = {"sample": "UID_1_1_1_all", **dict.fromkeys(LATENTS, 0.0), "log_area": np.log(30_000)}

        def mean(**changes: float) -> np.ndarray:
            image = draw_cell({**row, **changes}, 0)
            return image[image.any(axis=2)].mean(axis=0)

        def roughness(**changes: float) -> float:
            grey = draw_cell({**row, **changes}, 0)[150:300, 150:300].mean(axis=2)
            return float(np.abs(np.diff(grey, axis=0)).mean())

        assert (mean(brightness=2) > mean(brightness=-2)).all()
        assert mean(hue=2)[0] > mean(hue=-2)[0]
        assert mean(hue=2)[2] < mean(hue=-2)[2]
        assert roughness(grain=2) > roughness(grain=-2)
        assert roughness(blur=2) < roughness(blur=-2)
        assert roughness(texture=2) < roughness(texture=-2)


class TestFiles:
    def test_folders_and_names(self, small: Path) -> None:
        assert sorted(path.name for path in small.iterdir()) == ["C-NMC_Leukemia", "synthetic.json"]
        cohort = draw_cohort(SMALL)
        train = cohort[cohort["side"] == "train"]
        expected = {
            str(TRAINING / f"fold_{fold}" / label / f"{sample}.bmp")
            for fold, label, sample in zip(train["fold"], train["label"], train["sample"], strict=True)
        }
        expected |= {str(PRELIMINARY / f"{number}.bmp") for number in range(1, 13)}
        expected |= {str(FINAL / f"{number}.bmp") for number in range(1, 4)}
        expected |= {"synthetic.json", f"{PRELIMINARY}_labels.csv"}
        assert set(contents(small)) == expected
        assert train["sample"].str.fullmatch(r"UID_H?\d+_\d+_\d+_(all|hem)").all()

    def test_bitmaps_are_like_the_real_ones(self, small: Path) -> None:
        for path in small.rglob("*.bmp"):
            data = path.read_bytes()
            side = 600 if "testing_data" in path.parts else 450
            assert len(data) == (1_080_054 if side == 600 else 608_454)
            assert data[:2] == b"BM"
            assert int.from_bytes(data[10:14], "little") == 54
            assert int.from_bytes(data[28:30], "little") == 24
            with Image.open(path) as image:
                assert (image.mode, image.size) == ("RGB", (side, side))
                pixels = np.asarray(image)
            background = ~pixels.any(axis=2)
            assert 0.7 < background.mean() < 0.98
            assert background[:20].all()

    def test_label_table(self, small: Path) -> None:
        data = (small / f"{PRELIMINARY}_labels.csv").read_bytes()
        lines = data.decode("ascii").split("\r\n")
        assert lines[0] == "Patient_ID,new_names,labels"
        assert lines[-1] == ""
        assert data.count(b"\n") == data.count(b"\r\n") == 13
        cohort = draw_cohort(SMALL).query("side == 'preliminary'")
        for number, line in enumerate(lines[1:-1], start=1):
            name, new_name, label = line.split(",")
            row = cohort[cohort["number"] == number].iloc[0]
            assert (name, new_name) == (f"{row['sample']}.bmp", f"{number}.bmp")
            assert label == str(int(name.endswith("_all.bmp")))
            with Image.open(small / PRELIMINARY / new_name) as image:
                assert np.array_equal(np.asarray(image), draw_cell(row, SMALL.seed))

    def test_says_that_it_is_synthetic(self, small: Path) -> None:
        note = json.loads((small / "synthetic.json").read_text())
        assert "synthetic" in note["notice"]
        assert note["settings"] == dataclasses.asdict(SMALL)
        assert note["files"] == 55
        assert isinstance(note["generator_version"], int)

    def test_same_bytes_whatever_the_workers(self, small: Path, tmp_path: Path) -> None:
        write_dataset(tmp_path / "again", SMALL, workers=1, show_progress=False)
        assert contents(tmp_path / "again") == contents(small)

    def test_another_seed_gives_other_cells(self, small: Path, tmp_path: Path) -> None:
        other = write_dataset(tmp_path / "other", dataclasses.replace(SMALL, seed=4), show_progress=False)
        first = PRELIMINARY / "1.bmp"
        assert (other / first).read_bytes() != (small / first).read_bytes()

    def test_is_used_again(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(synthetic, "draw_cell", None)
        assert write_dataset(small, SMALL, show_progress=False) == small

    def test_refuses_another_synthetic_data_set(self, small: Path) -> None:
        with pytest.raises(
            DataError, match=r"does not hold this synthetic data set, whole: .*Pass another folder, or delete"
        ):
            write_dataset(small, dataclasses.replace(SMALL, seed=9), show_progress=False)

    def test_refuses_another_generator_version(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(synthetic, "GENERATOR_VERSION", 999)
        with pytest.raises(DataError, match="999"):
            write_dataset(small, SMALL, show_progress=False)

    def test_refuses_a_foreign_folder_and_leaves_it_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(DataError, match="does not hold"):
            write_dataset(tmp_path, SMALL, show_progress=False)
        assert contents(tmp_path) == {"notes.txt": b"mine"}

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(DataError, match="does not hold"):
            write_dataset(tmp_path / "file", SMALL, show_progress=False)

    def test_reports_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(DataError, match="cannot be written"):
            write_dataset(tmp_path / "file" / "cells", SMALL, show_progress=False)


class TestInterruption:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        drawn = []

        def draw(row: dict[str, object], seed: int, size: int) -> np.ndarray:
            drawn.append(row)
            if len(drawn) == 10:
                raise error
            return draw_cell(row, seed, size)

        monkeypatch.setattr(synthetic, "draw_cell", draw)
        with pytest.raises(error):
            write_dataset(tmp_path / "cells", SMALL, workers=1, show_progress=False)
        assert not any(tmp_path.iterdir())

    def test_disk_full_is_a_data_error_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def draw(row: dict[str, object], seed: int, size: int) -> np.ndarray:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(synthetic, "draw_cell", draw)
        with pytest.raises(DataError, match="No space left"):
            write_dataset(tmp_path / "cells", SMALL, workers=1, show_progress=False)
        assert not any(tmp_path.iterdir())

    def test_missing_images_are_noticed(self, tmp_path: Path) -> None:
        root = write_dataset(tmp_path / "cells", SMALL, show_progress=False)
        (root / FINAL / "1.bmp").unlink()
        with pytest.raises(DataError, match="does not hold"):
            write_dataset(root, SMALL, show_progress=False)

    def test_empty_folder_is_filled(self, tmp_path: Path, small: Path) -> None:
        root = tmp_path / "cells"
        root.mkdir()
        assert contents(write_dataset(root, SMALL, show_progress=False)) == contents(small)


class TestCalibration:
    """Two seeds of what benchmarks/synthetic_calibration.py shows on twenty: tolerances are wider for that."""

    @pytest.mark.parametrize(
        ("quantity", "low", "high"),
        [
            ("size: balanced accuracy", 0.62, 0.84),
            ("size: AUROC", 0.72, 0.90),
            ("colour: balanced accuracy", 0.32, 0.68),
            ("texture: AUROC", 0.65, 0.95),
            ("texture at 96 px: AUROC", 0.60, 0.95),
            ("SVM AUROC, random split minus subject split", -0.02, 0.16),
            ("latent ceiling: AUROC", 0.85, 0.985),
            ("ICC log area", 0.08, 0.42),
            ("ICC hue", 0.18, 0.52),
            ("ICC brightness", 0.18, 0.52),
            ("ICC grain", 0.18, 0.52),
            ("ICC blur", 0.18, 0.52),
        ],
    )
    def test_is_near_its_range(self, summary: pd.Series, quantity: str, low: float, high: float) -> None:
        assert low <= summary[quantity] <= high

    def test_every_target_is_measured(self, calibration: ModuleType, summary: pd.Series) -> None:
        assert set(summary.index) == set(calibration.TARGETS)

    def test_intraclass_correlation_finds_what_was_put_in(self, calibration: ModuleType) -> None:
        rng = np.random.default_rng(0)
        groups = np.repeat(np.arange(400), rng.integers(2, 20, 400))
        classes = groups % 2
        values = 5.0 * classes + 0.6 * rng.standard_normal(400)[groups] + 0.8 * rng.standard_normal(len(groups))
        found = calibration.intraclass_correlation(values, groups, classes)
        assert found == pytest.approx(0.36, abs=0.05)
