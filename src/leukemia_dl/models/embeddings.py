"""Features that exist already, such as an encoder's output in a file: a table with a row per image."""

import hashlib
import logging
import posixpath
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.checks import import_extra
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.identity import canonical_json

_KEYS, _MOST_BYTES = ("sample", "path"), 1 << 32  # of a file's arrays, unpacked
_FACTS = (  # not features, even if they are numbers
    *_KEYS, "label", "subject", "patient", "group", "field", "cell", "same_cell", "fold", "split", "side", "dataset",
    "site",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of images, computed elsewhere, that enter a benchmark like a frozen backbone: `backbones=[embeddings]`.

    Tables and files have a column `sample` or `path` (if both, `sample` is used). All others are features, in their
    order, and hold numbers. Facts about the image are ignored: the columns of a data set's table (label, subject,
    group, fold and others), patient, side, dataset and site. DataError if keys are missing or repeated, or features are
    not finite numbers.

    Attributes:
        name: As a backbone's: lower case letters, digits, _ - .
        keys: The sample id or path of each row; paths may be relative to any folder.
        features: float32 (n, d), read-only.
    """

    name: str
    keys: tuple[str, ...] = field(repr=False)
    features: NDArray[np.float32] = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", str(self.name)):
            raise DataError(f"A name is of lower case letters, digits, _ - . Received: {self.name!r}.")
        where, given = f"The embeddings {self.name!r}", np.asarray(self.features)
        keys = pd.Series([*self.keys], dtype=object).convert_dtypes().astype(object)  # whole numbers may come as floats
        if given.ndim != 2 or len(given) != len(keys) or not given.size or given.dtype.kind not in "fiu":
            found = f"{given.dtype} {given.shape} for {len(keys):,} keys"
            raise DataError(f"{where} need features of numbers (n, d), a row for each key. Received: {found}.")
        if missing := int((keys.isna() | (keys == "")).sum()):
            raise DataError(f"{where} have {missing:,} of {len(keys):,} rows without a key. Complete or drop them.")
        keys = keys.map(str)
        with np.errstate(over="ignore"):
            features = np.array(given, np.float32)
        if len(bad := keys[np.flatnonzero(~np.isfinite(features).all(axis=1))]):
            found = f"{len(bad):,} of {len(keys):,} rows: {', '.join(map(repr, bad[:5]))}"
            raise DataError(f"{where} have NaN or infinite values, as float32, in {found}. Drop or correct them.")
        if len(twice := keys[keys.duplicated()].unique()):
            values = "different" if np.ptp(features[keys == twice[0]], axis=0).any() else "equal"
            found = f"{len(twice):,} keys in several rows, such as {twice[0]!r} with {values} features"
            raise DataError(f"{where} have {found}. Keep one row of each.")
        features.flags.writeable = False
        vars(self).update(keys=tuple(keys), features=features)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of keys and features, in any order of the rows: 64 hexadecimal digits."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        text = canonical_json([[self.keys[row] for row in order], self.features.shape])
        return hashlib.sha256(text.encode() + self.features[order].astype("<f4").tobytes()).hexdigest()

    @property
    def identity(self) -> str:
        """The digest as a trial names it in place of weights."""
        return f"sha256:{self.digest}"

    @classmethod
    def from_frame(cls, name: str, frame: pd.DataFrame) -> "Embeddings":
        """Return the embeddings `name` of a table `frame`. Raises DataError if a column is no feature."""
        columns, where = [*map(str, frame.columns)], f"The embeddings {name!r} need"
        key = next((key for key in _KEYS if key in columns), "")
        if not key or len({*columns}) < len(columns):
            found = f"{len(columns):,} columns: {', '.join(columns[:9])}"
            raise DataError(f"{where} a column sample or path, and each column once. Received: {found}.")
        parts = frame.loc[:, [column.lower() not in _FACTS for column in columns]]
        # pandas calls an index "Unnamed: 0" that it wrote as a column.
        odd = [str(c) for c, dtype in parts.dtypes.items() if dtype.kind not in "fiu" or str(c).startswith("Unnamed: ")]
        if odd or not parts.shape[1]:
            found = f"{len(odd):,} that are no features: {', '.join(odd[:9])}. Drop or convert them" if odd else "none"
            raise DataError(f"{where} columns of numbers besides facts. Received: {found}.")
        unlike = ", ".join(str(column) for column in parts if not str(column)[-1:].isdigit())
        if 0 < unlike.count(", ") + bool(unlike) < parts.shape[1]:
            _log.warning("Embeddings %r: columns that end in no digit are taken as features: %.99s", name, unlike)
        with np.errstate(over="ignore"):
            return cls(name, tuple(frame[key]), parts.to_numpy(np.float32, na_value=np.nan))

    @classmethod
    def from_file(cls, name: str, file: str | Path) -> "Embeddings":
        """Return the embeddings `name` of a `file`: .csv in UTF-8 with a header, .parquet (extra `parquet`), or .npz.

        An .npz file has arrays `sample` or `path` (n,) and `features` (n, d). Raises DataError if it cannot be read.
        """
        try:
            content = _content(Path(file).expanduser(), Path(file).suffix.lower())
        except SettingsError:
            raise
        except Exception as error:  # damaged files raise errors of many kinds
            reason = str(error).rstrip(". ") or type(error).__name__
            raise DataError(f"The embeddings {name!r} cannot be read from {file}: {reason}.") from error
        return cls.from_frame(name, content) if isinstance(content, pd.DataFrame) else cls(name, *content)

    from_csv = from_parquet = from_npz = from_file

    def rows_for(self, samples: Sequence[str], paths: Sequence[Any] | None = None) -> NDArray[np.float32]:
        """Return the features of images, float32 (n, d), in the order of their ids `samples` and `paths` (NA: no file).

        All are found in one way: by sample id, or by path, or by as many of its last parts as possible. A warning says
        so if parts of keys do not count, such as folders elsewhere. Raises DataError if images have no features.
        """
        parts = [posixpath.normpath(key.replace("\\", "/")).split("/") for key in self.keys]
        known = [] if paths is None else [str("" if pd.isna(path) else path).replace("\\", "/") for path in paths]
        best = np.full(len(samples), -1)
        for depth in (0, *range(max(map(len, parts)) if known else 0, 0, -1)):
            keys = pd.Index(["/".join(part[-depth:]) for part in parts] if depth else self.keys)
            images = pd.Index(["/".join(path.split("/")[-depth:]) for path in known] if depth else [*map(str, samples)])
            if images.has_duplicates or keys[keys.duplicated()].isin(images).any():
                continue  # it is not clear which image is meant
            first = ~keys.duplicated()
            rows = np.append(np.flatnonzero(first), -1)[keys[first].get_indexer(images)]
            best = rows if (rows >= 0).sum() > (best >= 0).sum() else best
            if (rows >= 0).all():
                if depth and any(len(parts[row]) > depth for row in rows):
                    message = "Embeddings %r: images are found by the last %d parts of paths only, such as %r for %r"
                    _log.warning(message, self.name, depth, self.keys[rows[0]], known[0])
                return np.asarray(self.features[rows])
        left = [repr(sample) for sample, row in zip(samples, best, strict=True) if row < 0]
        found = f"no features of {len(left):,} of {len(best):,} images: {', '.join(left[:5])}"
        if len(left) == len(best):
            found += f"; they may be of other images: a key is {self.keys[0]!r}, a path {known[0] if known else None!r}"
        hint = "A key is a sample id or a path; a part of a path must belong to one image only"
        raise DataError(f"The embeddings {self.name!r} have {found}. {hint}.")


def _content(file: Path, form: str) -> Any:
    if not file.is_file() or form not in (".csv", ".parquet", ".npz"):  # reading a pipe would wait for ever
        raise ValueError("it is no file that ends in .csv, .parquet or .npz")
    if form == ".csv":
        how: Any = {"compression": None, "index_col": False, "encoding": "utf-8-sig", "keep_default_na": False}
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # for a row that is too long
            columns = pd.read_csv(file, nrows=0, **how).columns.difference(_KEYS)  # "007" and "NA" are keys
            gaps = {column: ["", "nan", "NaN", "NA"] for column in columns}
            return pd.read_csv(file, dtype=dict.fromkeys(_KEYS, str), na_values=gaps, **how)
    if form == ".parquet":
        parquet = import_extra("pyarrow.parquet", "parquet")
        held = parquet.read_metadata(file)
        _bound(held.num_rows * held.num_columns * 4)
        return parquet.read_table(file).to_pandas()
    with np.load(file, allow_pickle=False) as arrays:
        _bound(sum(member.file_size for member in arrays.zip.infolist()))
        key = next((key for key in _KEYS if key in arrays), "")
        if not key or "features" not in arrays:
            raise ValueError(f"it needs arrays sample or path, and features. Found: {', '.join(arrays) or 'none'}")
        keys, features = arrays[key], arrays["features"]
    if keys.ndim != 1 or keys.dtype.kind not in "USiu":
        raise ValueError(f"{key} must be texts or whole numbers (n,). Received: {keys.dtype} {keys.shape}")
    return keys.astype(str), features


def _bound(size: int) -> None:
    if size > _MOST_BYTES:
        raise ValueError(f"it has arrays of {size:,} bytes, more than {_MOST_BYTES:,}")
