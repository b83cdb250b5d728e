"""Decoded files: kept once, mapped by all, and never in the way of a run."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.data import decoded
from tests.data.test_sources import write_idx_folder

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "LEAST_BYTES", 0)
    return tmp_path / "cache/fedsparse/data"


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"packed")
    return path


def refuse() -> np.ndarray:
    raise AssertionError("decoded a second time")


def test_a_file_is_decoded_once_and_mapped_from_then_on(source, cache):
    first = decoded.mapped(source, lambda: ARRAY)
    again = decoded.mapped(source, refuse)
    for array in (first, again):
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, ARRAY)
    again[0] = -1  # stays in this process
    np.testing.assert_array_equal(decoded.mapped(source, refuse), ARRAY)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_a_changed_file_is_decoded_anew_and_its_old_samples_go(source, cache):
    old = decoded.mapped(source, lambda: ARRAY)
    source.write_bytes(b"packed otherwise")
    np.testing.assert_array_equal(decoded.mapped(source, lambda: ARRAY + 1), ARRAY + 1)
    np.testing.assert_array_equal(old, ARRAY)  # whoever has it mapped keeps it
    assert len(list(cache.iterdir())) == 1


def test_another_file_of_the_same_size_and_time_is_another_file(source, cache):
    decoded.mapped(source, lambda: ARRAY)
    before = source.stat()
    source.write_bytes(b"PACKED")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(decoded.mapped(source, lambda: ARRAY + 1), ARRAY + 1)


def test_a_file_that_is_replaced_while_it_is_decoded_is_not_kept(source, cache):
    def decode() -> np.ndarray:
        source.write_bytes(b"packed otherwise")
        return ARRAY

    np.testing.assert_array_equal(decoded.mapped(source, decode), ARRAY)
    assert not cache.exists()


def test_without_a_home_files_are_decoded_as_ever(source, monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert decoded.mapped(source, lambda: ARRAY) is ARRAY


def test_what_a_killed_process_left_is_removed(source, cache):
    cache.mkdir(parents=True)
    left, new = cache / "left.tmp", cache / "new.tmp"
    for path in (left, new):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    decoded.mapped(source, lambda: ARRAY)
    assert not left.exists()
    assert new.exists()


@pytest.mark.parametrize("rest", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_file_of_the_cache_is_made_again(source, cache, rest):
    decoded.mapped(source, lambda: ARRAY)
    (kept,) = cache.iterdir()
    kept.write_bytes(rest)
    np.testing.assert_array_equal(decoded.mapped(source, lambda: ARRAY), ARRAY)
    np.testing.assert_array_equal(decoded.mapped(source, refuse), ARRAY)


def test_a_truncated_file_of_the_cache_is_made_again(source, cache):
    decoded.mapped(source, lambda: ARRAY)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-4])
    np.testing.assert_array_equal(decoded.mapped(source, lambda: ARRAY), ARRAY)


def test_without_a_cache_files_are_decoded_as_ever(source, cache):
    cache.parents[1].write_bytes(b"a file where the folder should be")
    assert decoded.mapped(source, lambda: ARRAY) is ARRAY
    assert decoded.mapped(source, lambda: ARRAY) is ARRAY


def test_what_is_small_is_not_kept(source, cache, monkeypatch):
    monkeypatch.setattr(decoded, "LEAST_BYTES", ARRAY.nbytes + 1)
    assert decoded.mapped(source, lambda: ARRAY) is ARRAY
    assert not cache.exists()


@pytest.mark.parametrize("partition", ["dirichlet", "sampled"])
@pytest.mark.parametrize("samples", [None, 15])
def test_clients_have_the_same_samples_mapped_or_not(tmp_path, monkeypatch, partition, samples):
    folder = tmp_path / "idx"
    folder.mkdir()
    config = DataConfig(
        name="idx",
        path=str(write_idx_folder(folder, zipped=True)),
        public_samples=3,
        samples=samples,
        partition=partition,
        min_per_client=2,
    )

    def dealt() -> data.FederatedData:
        data._load.cache_clear()
        return data.load(config, clients=3, seed=0)

    mapped = dealt()
    monkeypatch.setattr(decoded, "LEAST_BYTES", 2**30)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    plain = dealt()
    assert isinstance(mapped.train.x, np.memmap)
    assert not isinstance(plain.train.x, np.memmap)
    assert mapped.sizes.tolist() == plain.sizes.tolist()
    assert data.partition_counts(mapped) == data.partition_counts(plain)
    pairs = [(mapped.test, plain.test), (mapped.public, plain.public)]
    for client in range(3):
        one, other = mapped.client(client), plain.client(client)
        pairs += [(one.train, other.train), (one.test, other.test)]
    for one, other in pairs:
        assert one.x.tobytes() == other.x.tobytes()
        assert one.y.tobytes() == other.y.tobytes()
