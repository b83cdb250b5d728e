"""Sources: what well-formed files become, and how damaged ones are refused."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.data import sources
from fedsparse.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 5, 6)).astype(np.uint8)
LABELS = (np.arange(30) % 3).astype(np.uint8)


def idx_bytes(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def write_idx_folder(folder: Path, *, zipped: bool = False, test: str = "t10k") -> Path:
    for part, count in (("train", 20), (test, 10)):
        for kind, array in (("images-idx3", PIXELS[:count]), ("labels-idx1", LABELS[:count])):
            content = idx_bytes(array)
            name = f"{part}-{kind}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def npz_config(path: Path, **arrays: np.ndarray) -> DataConfig:
    np.savez(path / "samples.npz", **arrays)
    return DataConfig(name="npz", path=str(path / "samples.npz"))


def features(samples: int = 10) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(samples, 4))


def test_digits_are_embedded_centred_and_split_alike_for_every_seed():
    source = sources.digits(DataConfig(), 0)
    assert source.train.x.shape == (1438, 1, 8, 8)
    assert source.test.x.shape == (359, 1, 8, 8)
    assert (source.train.x.min(), source.train.x.max()) == (-1.0, 1.0)
    assert (source.train.x.dtype, source.train.y.dtype) == (np.float32, np.int64)
    assert source.train.classes == 10
    assert np.array_equal(source.test.x, sources.digits(DataConfig(), 9).test.x)


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_idx_folders_become_scaled_images(tmp_path, zipped, test):
    write_idx_folder(tmp_path, zipped=zipped, test=test)
    source = sources.idx(DataConfig(name="idx", path=str(tmp_path)), 0)
    assert (source.train.x.shape, source.test.x.shape) == ((20, 1, 5, 6), (10, 1, 5, 6))
    restored = source.train.x[:, 0] * 63.75 + 127.5
    np.testing.assert_allclose(restored, PIXELS[:20], atol=1e-4)
    assert source.train.y.tolist() == LABELS[:20].tolist()
    assert source.train.classes == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")],
)
def test_every_idx_type_is_read_as_written(tmp_path, code, kind):
    array = np.arange(12).reshape(3, 4).astype(kind)
    (tmp_path / "file").write_bytes(idx_bytes(array, code))
    assert np.array_equal(sources.read_idx(tmp_path / "file"), array)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 6, 15, 16, 100])
def test_truncated_idx_files_are_refused(tmp_path, keep):
    (tmp_path / "file").write_bytes(idx_bytes(PIXELS)[:keep])
    with pytest.raises(DataError, match="file"):
        sources.read_idx(tmp_path / "file")


@pytest.mark.parametrize("start", [b"\x89PNG", b"\0\0\x07\x01", b"\0\x01\x08\x03"])
def test_other_magic_numbers_are_refused(tmp_path, start):
    (tmp_path / "file").write_bytes(start + idx_bytes(PIXELS)[4:])
    with pytest.raises(DataError, match=f"no IDX file: it starts with {start.hex()}"):
        sources.read_idx(tmp_path / "file")


def test_trailing_bytes_and_boastful_headers_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(idx_bytes(PIXELS) + b"\0")
    with pytest.raises(DataError, match="its header says"):
        sources.read_idx(tmp_path / "file")
    (tmp_path / "file").write_bytes(struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3))
    with pytest.raises(DataError, match="its header says"):
        sources.read_idx(tmp_path / "file")


def test_a_damaged_gzip_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(gzip.compress(idx_bytes(PIXELS))[:-20])
    with pytest.raises(DataError, match=r"is cut off or damaged: .*; copy it again"):
        sources.read_idx(tmp_path / "file")


def test_idx_folders_must_be_whole_and_consistent(tmp_path):
    config = DataConfig(name="idx", path=str(tmp_path))
    with pytest.raises(DataError, match="no train-images IDX file"):
        sources.idx(config, 0)
    write_idx_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:19]))
    with pytest.raises(DataError, match="20 samples, 19 labels"):
        sources.idx(config, 0)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks the train images or labels"):
        sources.idx(config, 0)


def test_train_and_test_samples_must_be_alike(tmp_path):
    write_idx_folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(PIXELS[:10, :4]))
    with pytest.raises(DataError, match=r"\(1, 5, 6\), test samples \(1, 4, 6\)"):
        sources.idx(DataConfig(name="idx", path=str(tmp_path)), 0)


@pytest.mark.skipif(
    sources.fashion_folder() is None,
    reason="Fashion-MNIST's files are not on this machine (Debian: dataset-fashion-mnist)",
)
def test_fashion_mnist_is_whole():
    source = sources.fashion_mnist(DataConfig(name="fashion-mnist"), 0)
    assert (source.train.x.shape, source.test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(source.train.y).tolist() == [6_000] * 10
    assert abs(float(source.train.x.mean())) < 1.0


def test_fashion_mnist_is_looked_for_where_it_is_said_to_be(tmp_path, monkeypatch):
    write_idx_folder(tmp_path)
    config = DataConfig(name="fashion-mnist", path=str(tmp_path))
    assert len(sources.fashion_mnist(config, 0).train) == 20
    (tmp_path / "fashion-mnist").mkdir()
    write_idx_folder(tmp_path / "fashion-mnist", zipped=True)
    monkeypatch.setenv("FEDSPARSE_DATA", str(tmp_path))
    assert sources.fashion_folder() == tmp_path / "fashion-mnist"
    assert len(sources.fashion_mnist(DataConfig(name="fashion-mnist"), 0).train) == 20


def test_fashion_mnist_that_is_nowhere_says_where_it_was_sought(tmp_path):
    config = DataConfig(name="fashion-mnist", path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere; install .*data\.path"):
        sources.fashion_mnist(config, 0)


def test_npz_with_one_set_holds_out_a_fifth_by_the_seed(tmp_path):
    config = npz_config(tmp_path, x=features(50), y=np.arange(50) % 4)
    first, again, other = (sources.npz(config, seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.test), first.train.classes) == (40, 10, 4)
    assert np.array_equal(first.test.x, again.test.x)
    assert not np.array_equal(first.test.x, other.test.x)
    assert first.train.x.dtype == np.float32


def test_npz_with_two_sets_keeps_them(tmp_path):
    x, y = features(12), np.arange(12) % 3
    config = npz_config(tmp_path, x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:] * 2)
    source = sources.npz(config, 0)
    np.testing.assert_allclose(source.train.x, x[:8], rtol=1e-6)
    assert source.test.y.tolist() == (y[8:] * 2).tolist()
    assert source.train.classes == source.test.classes == 5


def test_npz_images_tokens_and_features_are_told_apart(tmp_path):
    y = np.arange(10) % 2
    last = npz_config(tmp_path, x=RNG.integers(0, 256, (10, 5, 6, 3)).astype(np.uint8), y=y)
    assert sources.npz(last, 0).train.x.shape == (8, 3, 5, 6)
    tokens = npz_config(tmp_path, x=RNG.integers(0, 256, (10, 7)), y=y)
    assert sources.npz(tokens, 0).train.x.dtype == np.int64
    wide = npz_config(tmp_path, x=features().astype(np.float16), y=y)
    assert sources.npz(wide, 0).train.x.dtype == np.float32


def test_a_column_follows_its_samples_to_the_clients(tmp_path):
    writers = np.array(["ann", "bob", "cem", "dan"])[np.arange(40) % 4]
    x = np.repeat(np.arange(40.0)[:, None], 2, 1)
    config = npz_config(tmp_path, x=x, y=np.arange(40) % 2, writer=writers)
    changes = {"column": "writer", "partition": "natural", "public_samples": 0}
    config = config.model_copy(update=changes)
    federated = data.load(config, clients=4, seed=0)
    for client in range(4):
        own = federated.train.x[federated.partition[client]][:, 0]
        assert set(own.astype(int) % 4) == {client}


def test_a_column_must_be_there_and_fit(tmp_path):
    config = npz_config(tmp_path, x=features(), y=np.arange(10) % 2, site=np.arange(9))
    with pytest.raises(DataError, match=r"no array 'writer'; it has site, x, y"):
        sources.npz(config.model_copy(update={"column": "writer"}), 0)
    with pytest.raises(DataError, match=r"'site' has shape \(9,\), not \(10,\)"):
        sources.npz(config.model_copy(update={"column": "site"}), 0)


def test_real_labels_mean_regression(tmp_path):
    source = sources.npz(npz_config(tmp_path, x=features(), y=np.linspace(-1, 1, 10)), 0)
    assert (source.train.classes, source.train.y.dtype) == (1, np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": features()}, "no array 'y'"),
        ({"x_train": features(), "y_train": np.zeros(10, int)}, "no array 'x_test'"),
        ({"x": features(), "y": np.zeros(9, int)}, "10 samples, 9 labels"),
        ({"x": features(), "y": np.zeros((10, 1), int)}, r"labels have shape \(10, 1\)"),
        ({"x": features(), "y": np.int64(3)}, r"labels have shape \(\)"),
        ({"x": features(), "y": np.array(["a"] * 10)}, "labels must be integers"),
        ({"x": features(), "y": np.arange(10) - 1}, "labels must be integers from 0"),
        ({"x": features(), "y": np.arange(10) + 10**9}, "the highest label is"),
        ({"x": features(), "y": np.full(10, np.nan)}, "labels hold NaN"),
        ({"x": np.full((10, 4), np.nan), "y": np.zeros(10, int)}, "samples hold NaN"),
        ({"x": np.full((10, 4), np.inf), "y": np.zeros(10, int)}, "samples hold NaN or infinity"),
        ({"x": np.full((10, 4), 1e300), "y": np.zeros(10, int)}, "samples hold NaN or infinity"),
        ({"x": np.zeros(10), "y": np.zeros(10, int)}, r"of shape \(10,\)"),
        ({"x": np.zeros((10, 4), complex), "y": np.zeros(10, int)}, "complex128"),
        ({"x": np.full((10, 4), "a"), "y": np.zeros(10, int)}, "use numbers"),
        ({"x": features(1), "y": np.zeros(1, int)}, "too few"),
        (
            {
                "x_train": features(),
                "y_train": features()[:, 0],
                "x_test": features(),
                "y_test": np.arange(10),
            },
            "both be integers or real",
        ),
    ],
)
def test_npz_arrays_that_are_no_samples_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        sources.npz(npz_config(tmp_path, **arrays), 0)


class Bomb:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_pickled_arrays_are_refused_and_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = npz_config(tmp_path, x=np.array([Bomb()] * 10), y=np.arange(10))
    with pytest.raises(DataError, match="holds Python objects, which are not read"):
        sources.npz(config, 0)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"no readable \.npz"):
        sources.npz(DataConfig(name="npz", path=str(tmp_path / "file.npz")), 0)


def test_a_single_array_a_folder_and_a_damaged_file_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", features())
    whole = Path(str(npz_config(tmp_path, x=features(), y=np.arange(10)).path))
    content = bytearray(whole.read_bytes())
    content[200] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    for name in ("one.npy", "flipped.npz", "."):
        with pytest.raises(DataError, match=r"no readable \.npz"):
            sources.npz(DataConfig(name="npz", path=str(tmp_path / name)), 0)


@pytest.mark.parametrize("name", ["idx", "npz", "image-folder"])
def test_a_missing_path_is_named_with_what_belongs_there(tmp_path, name):
    with pytest.raises(DataError, match=rf"data\.name = '{name}' needs data\.path, a"):
        data.load(DataConfig(name=name), clients=2, seed=0)
    with pytest.raises(DataError, match=r"gone' does not exist; give a"):
        data.load(DataConfig(name=name, path=str(tmp_path / "gone")), clients=2, seed=0)


def write_images(folder: Path, classes: int = 3, each: int = 5) -> Path:
    image = pytest.importorskip("PIL.Image", reason="needs pillow, of the extra 'data'")
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            pixels = np.full((9, 7, 3), 80 * label, np.uint8)
            image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folders_are_resized_and_labelled_by_folder(tmp_path, channels):
    write_images(tmp_path)
    (tmp_path / "class0" / "notes.txt").write_text("no image")
    config = DataConfig(name="image-folder", path=str(tmp_path), image_size=8, channels=channels)
    source = sources.image_folder(config, 0)
    assert source.train.x.shape == (12, channels, 8, 8)
    assert (len(source.test), source.train.classes) == (3, 3)
    brightness = source.train.x[:, 0, 0, 0] * 63.75 + 127.5
    np.testing.assert_allclose(brightness, 80 * source.train.y, atol=1)


def test_image_folders_may_bring_their_own_test_set(tmp_path):
    write_images(tmp_path / "train", 3, 4)
    write_images(tmp_path / "test", 2, 2)
    source = sources.image_folder(DataConfig(path=str(tmp_path), image_size=4), 0)
    assert (len(source.train), len(source.test), source.test.classes) == (12, 4, 3)


def test_image_folders_without_classes_or_images_are_refused(tmp_path):
    config = DataConfig(name="image-folder", path=str(tmp_path))
    with pytest.raises(DataError, match="0 class folders"):
        sources.image_folder(config, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        sources.image_folder(config, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        sources.image_folder(config.model_copy(update={"path": str(tmp_path / "file")}), 0)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_broken_image_is_named(tmp_path, content):
    write_images(tmp_path, each=2)
    (tmp_path / "class1" / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png' is no readable image"):
        sources.image_folder(DataConfig(path=str(tmp_path)), 0)
