"""Hugging Face datasets, from local files: columns by type, labels, and what is refused."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.data import hub
from fedsparse.errors import DataError, MissingExtraError


def config(path: Path | str | None, **changes) -> DataConfig:
    return DataConfig(name="huggingface", path=None if path is None else str(path), **changes)


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparse\[data\]'"):
        hub.huggingface(config("mnist"), 0)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, offline and with its cache in a folder of the test."""
    library = pytest.importorskip("datasets", reason="needs the extra 'data'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


def images(datasets, count: int = 20):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (9, 7, 3)).astype(np.uint8) for _ in range(count)]
    kinds = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog", "owl"]),
        writer=datasets.Value("string"),
    )
    values = {
        "image": pixels,
        "label": [i % 3 for i in range(count)],
        "writer": [f"w{i % 2}" for i in range(count)],
    }
    return datasets.Dataset.from_dict(values, features=kinds)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_class_labels_are_found_by_type(datasets, tmp_path, channels):
    images(datasets).to_parquet(tmp_path / "all.parquet")
    source = hub.huggingface(config(tmp_path / "all.parquet", image_size=8, channels=channels), 0)
    assert source.train.x.shape == (16, channels, 8, 8)
    assert (source.train.x.dtype, source.train.classes, len(source.test)) == (np.float32, 3, 4)


def test_a_folder_of_splits_keeps_its_test_set(datasets, tmp_path):
    whole = images(datasets)
    whole.select(range(12)).to_parquet(tmp_path / "train.parquet")
    whole.select(range(12, 20)).to_parquet(tmp_path / "test.parquet")
    source = hub.huggingface(config(tmp_path), 0)
    assert source.train.y.tolist() == [i % 3 for i in range(12)]
    assert source.test.y.tolist() == [i % 3 for i in range(12, 20)]


def test_a_column_gives_the_natural_partition(datasets, tmp_path):
    images(datasets).to_parquet(tmp_path / "all.parquet")
    settings = config(
        tmp_path / "all.parquet", column="writer", partition="natural", public_samples=0
    )
    federated = data.load(settings, clients=2, seed=0)
    assert [len(part) for part in federated.partition] == [
        sum(c) for c in data.partition_counts(federated)
    ]
    assert sum(map(len, federated.partition)) == 16
    assert federated.input_shape == (3, 32, 32)


def test_numeric_columns_are_put_side_by_side(datasets, tmp_path):
    lines = ["a,b,name,target"] + [f"{i},{i / 2},n{i},{['no', 'yes'][i % 2]}" for i in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    source = hub.huggingface(config(tmp_path / "table.csv"), 0)
    assert source.train.x.shape == (8, 2)
    assert source.train.classes == 2
    np.testing.assert_array_equal(source.train.x[:, 0].astype(int) % 2, source.train.y)
    np.testing.assert_array_equal(source.train.x[:, 0], 2 * source.train.x[:, 1])


def test_real_labels_mean_regression(datasets, tmp_path):
    lines = ["a,b,y"] + [f"{i},{i / 2},{i / 3}" for i in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    source = hub.huggingface(config(tmp_path / "table.csv"), 0)
    assert (source.train.classes, source.train.y.dtype) == (1, np.float32)


def test_lists_of_numbers_are_samples(datasets, tmp_path):
    lines = [json.dumps({"tokens": [i, 2, 3], "label": i % 2}) for i in range(10)]
    (tmp_path / "lists.jsonl").write_text("\n".join(lines))
    source = hub.huggingface(config(tmp_path / "lists.jsonl"), 0)
    assert (source.train.x.shape, source.train.x.dtype) == ((8, 3), np.int64)


def test_image_folders_are_read(datasets, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow, of the extra 'data'")
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.full((6, 6, 3), 20 * i, np.uint8)
            image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    source = hub.huggingface(config(tmp_path / "set", image_size=4), 0)
    assert source.train.x.shape == (8, 3, 4, 4)
    assert source.train.classes == 2


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("a,b\n1,2\n", {}, "no label among a, b"),
        ("a,label\nx,1\ny,0\n", {}, "needs one image column or numeric ones"),
        ("a,label\n1,1\n2,0\n", {"column": "writers"}, "'writers' is no column"),
        ("a,label\n1,1\n,0\n3,1\n", {}, "'a' has gaps"),
        ("a,label\n1,x\n2,\n3,y\n", {}, "'label' has gaps"),
        ("a,label,site\n1,1,x\n2,0,\n", {"column": "site"}, "no gaps"),
        ("", {}, "cannot be loaded"),
    ],
)
def test_tables_that_make_no_samples_are_refused(datasets, tmp_path, text, changes, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        hub.huggingface(config(tmp_path / "table.csv", **changes), 0)


def test_rows_of_unlike_length_are_refused(datasets, tmp_path):
    lines = [json.dumps({"x": [1.0] * (i + 1), "label": i % 2}) for i in range(4)]
    (tmp_path / "lists.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="differ in length"):
        hub.huggingface(config(tmp_path / "lists.jsonl"), 0)


def test_paths_that_lead_nowhere_are_named(datasets, tmp_path):
    with pytest.raises(DataError, match=r"needs data\.path"):
        hub.huggingface(config(None), 0)
    with pytest.raises(DataError, match="does not exist"):
        hub.huggingface(config(tmp_path / "gone"), 0)
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"use one of \.parquet"):
        hub.huggingface(config(tmp_path / "model.pkl"), 0)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"broken\.parquet' cannot be loaded"):
        hub.huggingface(config(tmp_path / "broken.parquet"), 0)
