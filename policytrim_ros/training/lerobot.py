"""LeRobotDataset v3 on disk, with pyarrow alone: LeRobot reads what is written here, and what it writes is read here.

    meta/info.json                             version, frames per second, features, how the files are called
    meta/stats.json                            of every feature: min max mean std count q01 q10 q50 q90 q99
    meta/tasks.parquet                         sentence -> task_index
    meta/episodes/chunk-000/file-000.parquet   a row an episode: length, place of its rows, statistics, and facts of the writer
    data/chunk-000/file-000.parquet            a row a control step; here a file an episode, 1000 files a chunk

Pictures are PNG inside the rows (dtype ``image``): lossless, and no video decoder is needed. Rows that repeat a picture
cost nothing, since the column is dictionary-encoded.

Nothing is changed in place. An episode exists once meta/episodes has been renamed over its predecessor: its data file is
written before, statistics and counts after, and they are made up for when the dataset is opened again. So a writer that is
killed, or whose disk is full, leaves the episodes that were finished.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from policytrim_ros.files import PARTIAL, replace_file

VERSION = "v3.0"
INFO, STATS, TASKS = Path("meta/info.json"), Path("meta/stats.json"), Path("meta/tasks.parquet")
EPISODES = Path("meta/episodes/chunk-000/file-000.parquet")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK_FILES = 1000
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
BOOKKEEPING = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
"""Features that every dataset has; `Writer.append` fills them."""

FACTS = "policytrim"
"""Column of meta/episodes that is ours: JSON; LeRobot hands it through."""

DICTIONARY_BYTES = 2**30  # the default of 1 MB would end the sharing of repeated pictures early


class DatasetError(ValueError):
    """A dataset cannot be used; one sentence: which, what is wrong, what to do."""


# -- files ----------------------------------------------------------------------------------------------------------


def write(path: Path, data) -> None:
    """`replace_file` with a sentence: DatasetError on a full disk."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise DatasetError(
            f"{path}: could not be written ({error.strerror}); free some space and repeat, what was finished is kept"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; DatasetError when it is damaged, FileNotFoundError when it is not there."""
    try:
        return json.loads(path.read_bytes())
    except (IsADirectoryError, PermissionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); restore the file or make the dataset again") from error


def read_table(path: Path, columns=None, filters=None) -> pa.Table:
    """A parquet file, its checksums verified; DatasetError when it is missing, truncated or damaged."""
    try:
        return pq.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def column_names(path: Path) -> list[str]:
    """The columns of a parquet file; DatasetError as `read_table`."""
    try:
        return pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error) -> DatasetError:
    reason = " ".join(str(error).split())[:200]
    return DatasetError(f"{path}: missing, truncated or damaged ({reason}); restore the file or make the dataset again")


def parquet_bytes(table: pa.Table) -> memoryview:
    """``table`` as a parquet file: zstd, checksums, repeated pictures stored once."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=max(len(table), 1),
        dictionary_pagesize_limit=DICTIONARY_BYTES,
        write_page_checksum=True,
        write_statistics=[name for name in table.column_names if name in BOOKKEEPING],  # of pictures they would be pictures
    )
    return buffer.getbuffer()


# -- pictures -------------------------------------------------------------------------------------------------------


def to_png(picture: np.ndarray) -> bytes:
    """(h, w, 3) uint8 RGB as PNG."""
    return cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()


def from_png(data: bytes) -> np.ndarray:
    """(h, w, 3) uint8 RGB; ValueError when the bytes are no picture."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise ValueError("a picture cannot be decoded")
    return np.ascontiguousarray(picture[..., ::-1])


# -- statistics -----------------------------------------------------------------------------------------------------


def statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of (N, d) values, component by component, (d,) each, as LeRobot's stats.json has them."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found.update(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0)))
    return {**found, "count": np.array([len(values)])}


def picture_statistics(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Of (P, h, w, 3) uint8 pictures, per channel, (3, 1, 1) each, in units of full brightness."""
    levels = np.arange(256) / 255.0
    channels = []
    for channel in range(3):
        counts = np.bincount(pictures[..., channel].ravel(), minlength=256)
        share = np.cumsum(counts) / counts.sum()
        mean = np.average(levels, weights=counts)
        found = {"min": levels[counts > 0][0], "max": levels[counts > 0][-1], "mean": mean}
        found["std"] = np.sqrt(np.average((levels - mean) ** 2, weights=counts))
        found.update({name: levels[np.searchsorted(share, q)] for name, q in QUANTILES.items()})
        channels.append(found)
    merged = {name: np.array([c[name] for c in channels]).reshape(3, 1, 1) for name in channels[0]}
    return {**merged, "count": np.array([len(pictures)])}


def merged_statistics(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Statistics of a whole from those of its episodes, by LeRobot's rules: quantiles are the weighted means of the parts'."""
    count = np.array([part["count"][0] for part in parts], np.float64)

    def weighted(values):
        return np.tensordot(count / count.sum(), np.stack(values), axes=1)

    mean = weighted([part["mean"] for part in parts])
    found = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(weighted([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])),
    }
    found.update({name: weighted([part[name] for part in parts]) for name in QUANTILES})
    return {**found, "count": np.array([int(count.sum())])}


# -- reading --------------------------------------------------------------------------------------------------------


def read_info(directory) -> dict:
    """meta/info.json of a dataset of this version. FileNotFoundError when there is none, DatasetError when it is unusable."""
    path = Path(directory) / INFO
    info = read_json(path)
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise DatasetError(f"{path}: describes no LeRobot dataset (no features); give another directory")
    if info.get("codebase_version") != VERSION:
        raise DatasetError(
            f"{path}: codebase_version is {info.get('codebase_version')}, expected {VERSION}; convert it with LeRobot's converter"
        )
    return info


def read_tasks(directory) -> dict[int, str]:
    """task_index -> sentence."""
    path = Path(directory) / TASKS
    table = read_table(path)
    texts = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
    texts += [name for name in table.column_names if pa.types.is_large_string(table.schema.field(name).type)]
    if "task_index" not in table.column_names or not texts:
        raise DatasetError(f"{path}: has the columns {table.column_names}, expected sentences and task_index; restore the file")
    return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist()))


def read_episode_rows(directory) -> list[dict]:
    """The rows of meta/episodes in the order of episode_index, without their statistics."""
    rows = []
    for path in sorted((Path(directory) / "meta" / "episodes").glob("*/*.parquet")):
        names = [name for name in column_names(path) if not name.startswith("stats/")]
        rows += read_table(path, columns=names).to_pylist()
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index", "tasks")
    for row in rows:
        if any(row.get(name) is None for name in needed):
            raise DatasetError(f"{directory}: a row of meta/episodes lacks one of {', '.join(needed)}; make the dataset again")
    return sorted(rows, key=lambda row: row["episode_index"])


def data_file(info, row) -> str:
    """The path, within the dataset, of the file that holds an episode's rows."""
    try:
        return info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(f"meta/info.json: data_path is {info.get('data_path')!r}; expected {DATA_PATH!r}") from error


def read_frames(directory, info, row, columns=None) -> pa.Table:
    """The rows of one episode, in order; DatasetError when some are missing."""
    path = Path(directory) / data_file(info, row)
    if columns is not None:
        missing = sorted(set(columns) - set(column_names(path)))
        if missing:
            raise DatasetError(
                f"{path}: episode {row['episode_index']}: the column '{missing[0]}' is missing; record it again or leave it out"
            )
    table = read_table(path, columns=columns, filters=[("episode_index", "=", row["episode_index"])])
    if len(table) != row["length"]:
        raise DatasetError(
            f"{path}: holds {len(table)} rows of episode {row['episode_index']}, meta/episodes says {row['length']}; "
            "restore the file or make the dataset again"
        )
    return table


def vectors(table: pa.Table, name: str) -> np.ndarray:
    """(N, d) numbers of a column, (N, 1) for scalars; ValueError on a ragged or empty cell."""
    column = table[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"'{name}' has empty cells")
    rows = len(column)
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if rows == 0 or len(values) % rows:
        raise ValueError(f"'{name}' has rows of different lengths")
    return values.reshape(rows, -1)


def picture_bytes(table: pa.Table, name: str) -> list[bytes]:
    """The encoded pictures of a column, one a row."""
    column = table[name].combine_chunks()
    if not pa.types.is_struct(column.type) or "bytes" not in [field.name for field in column.type]:
        raise ValueError(f"'{name}' holds no pictures")
    return column.field("bytes").to_pylist()


# -- writing --------------------------------------------------------------------------------------------------------


class Writer:
    """Appends episodes to the dataset in ``directory``, which is made when it does not exist; holds it alone.

    ``features``: name -> {dtype, shape, names} without the bookkeeping ones. Raises DatasetError when the dataset there has
    other features or another rate, was begun by another program, or is being written by another process.
    """

    def __init__(self, directory, features: Mapping[str, Mapping], fps: int, robot_type: str):
        self.directory = Path(directory)
        self.features = {**features, **BOOKKEEPING}
        self._lock = _lock(self.directory)
        try:
            self._open(fps, robot_type)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write; everything is on disk already."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __len__(self) -> int:
        return 0 if self._episodes is None else len(self._episodes)

    def facts(self) -> list[dict]:
        """What the writers of the episodes noted, by episode_index."""
        return [] if self._episodes is None else [json.loads(text) for text in self._episodes[FACTS].to_pylist()]

    def append(self, frames: Mapping[str, Any], sentence: str, facts: dict, stats: Mapping[str, Mapping] = {}) -> int:
        """Writes one episode and returns its episode_index.

        frames: feature -> (N, ...) array, or a list of N PNGs for dtype image; ``stats``: `picture_statistics` of those.
        """
        number, length = len(self), len(next(iter(frames.values())))
        first = self._frames
        task = self._task(sentence)
        columns = {
            **frames,
            "timestamp": (np.arange(length) / self.info["fps"]).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(first, first + length),
            "task_index": np.full(length, task),
        }
        table = pa.table({name: _column(columns[name], feature) for name, feature in self.features.items()})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": _hf_features(self.features)}})})
        row = {
            "episode_index": number,
            "tasks": [sentence],
            "length": length,
            "data/chunk_index": number // CHUNK_FILES,
            "data/file_index": number % CHUNK_FILES,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            FACTS: json.dumps(facts),
        }
        computed = {name: statistics(columns[name]) for name in self.features if self.features[name]["dtype"] != "image"}
        found = {name: {**stats, **computed}[name] for name in self.features}
        row.update({f"stats/{name}/{key}": value.tolist() for name, part in found.items() for key, value in part.items()})
        path = self.directory / data_file(self.info, row)
        write(path, parquet_bytes(table))
        try:
            self._commit(row, found)
        except DatasetError:
            path.unlink(missing_ok=True)  # no episode refers to it, and somebody wants the space
            raise
        return number

    def _open(self, fps: int, robot_type: str) -> None:
        wanted = {
            "codebase_version": VERSION,
            "robot_type": robot_type,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": json.loads(json.dumps(self.features)),
        }
        for rest in self.directory.rglob(f".*{PARTIAL}"):  # of a writer that was killed
            rest.unlink(missing_ok=True)
        self._episodes, self._stats, self._tasks, self._frames = None, {}, {}, 0
        try:
            self.info = read_info(self.directory)
        except FileNotFoundError:
            self.info = wanted
            if (self.directory / EPISODES).exists():
                raise DatasetError(
                    f"{self.directory}: meta/info.json is missing; restore it or choose another directory"
                ) from None
            write(self.directory / INFO, json.dumps(self.info, indent=4).encode())
            return
        for key in ("features", "fps", "data_path", "chunks_size"):
            if self.info.get(key) != wanted[key]:
                raise DatasetError(
                    f"{self.directory}: holds another kind of dataset ({key} differs: {self.info.get(key)}); choose another directory"
                )
        if (self.directory / EPISODES).exists():
            self._resume()

    def _resume(self) -> None:
        self._tasks = {sentence: number for number, sentence in read_tasks(self.directory).items()}
        self._episodes = read_table(self.directory / EPISODES)
        if FACTS not in self._episodes.column_names or len(list((self.directory / "meta/episodes").glob("*/*.parquet"))) != 1:
            raise DatasetError(f"{self.directory}: was written by another program; choose another directory")
        for row in self._episodes.to_pylist():
            self._count(row, {name: {key: np.array(row[f"stats/{name}/{key}"]) for key in _STATISTICS} for name in self.features})
        orphan = self.directory / data_file(
            self.info, {"data/chunk_index": len(self) // CHUNK_FILES, "data/file_index": len(self) % CHUNK_FILES}
        )
        orphan.unlink(missing_ok=True)  # of an episode that was not finished: LeRobot would read it
        self._write_summary()

    def _commit(self, row: dict, found) -> None:
        table = pa.Table.from_pylist([row])
        episodes = (
            table
            if self._episodes is None
            else pa.concat_tables([self._episodes, table.cast(self._episodes.schema)]).combine_chunks()
        )
        write(self.directory / EPISODES, parquet_bytes(episodes))
        self._episodes = episodes
        self._count(row, found)
        self._write_summary()

    def _count(self, row: dict, found) -> None:
        self._frames = row["dataset_to_index"]
        self._stats = {n: merged_statistics([self._stats[n], part]) if n in self._stats else part for n, part in found.items()}

    def _write_summary(self) -> None:
        stats = {name: {key: value.tolist() for key, value in part.items()} for name, part in self._stats.items()}
        write(self.directory / STATS, json.dumps(stats, indent=4).encode())
        total = len(self)
        counts = {"total_episodes": total, "total_frames": self._frames, "total_tasks": len(self._tasks)}
        self.info = {**self.info, **counts, "splits": {"train": f"0:{total}"}}
        write(self.directory / INFO, json.dumps(self.info, indent=4).encode())

    def _task(self, sentence: str) -> int:
        if sentence not in self._tasks:
            tasks = {**self._tasks, sentence: len(self._tasks)}
            write(self.directory / TASKS, parquet_bytes(_tasks_table(tasks)))
            self._tasks = tasks
        return self._tasks[sentence]


_STATISTICS = ("min", "max", "mean", "std", *QUANTILES, "count")


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DatasetError(
            f"{directory}: no dataset can be written there ({error.strerror}); choose another directory"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise DatasetError(f"{directory}: another process is writing there; wait for it or choose another directory") from error
    return handle


def _column(values, feature) -> pa.Array:
    """Rows as LeRobot stores them: pictures as (bytes, path), vectors as lists of fixed size, scalars as they are."""
    if feature["dtype"] == "image":
        return pa.StructArray.from_arrays([pa.array(values, pa.binary()), pa.nulls(len(values), pa.string())], ["bytes", "path"])
    kind = {"bool": pa.bool_(), "float32": pa.float32(), "int64": pa.int64()}[feature["dtype"]]
    flat = np.ascontiguousarray(values).ravel()
    size = int(np.prod(feature["shape"]))
    if flat.size != len(values) * size:
        raise ValueError(f"expected {size} numbers a row, got {np.shape(values)}")
    column = pa.array(flat, kind)
    return column if size == 1 else pa.FixedSizeListArray.from_arrays(column, size)


def _hf_features(features) -> dict:
    """The same in the words of the `datasets` library, which LeRobot's files carry."""
    described = {}
    for name, feature in features.items():
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["dtype"] == "image":
            described[name] = {"_type": "Image"}
        elif feature["shape"] == [1]:
            described[name] = value
        else:
            described[name] = {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}
    return described


def _tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """As pandas writes a frame with the sentences as its index: LeRobot looks them up there."""
    index = "__index_level_0__"
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), index: pa.array(tasks.keys(), pa.string())})
    text = {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    header = {**text, "field_name": None, "metadata": {"encoding": "UTF-8"}}
    pandas = {"index_columns": [index], "column_indexes": [header], "columns": [number, text], "attributes": {}}
    return table.replace_schema_metadata(
        {
            "pandas": json.dumps(
                {**pandas, "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.0.0"}
            )
        }
    )
