"""A node's own files: whatever the kind, the same samples; whatever is wrong, one line."""

import csv
import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedsparse import config as configuration
from fedsparse import data
from fedsparse.data import Dataset, decoded, node, node_files, schema
from fedsparse.data.node_files import Wanted
from fedsparse.errors import ConfigError, DataError, FedSparseError
from tests.data.test_sources import idx_bytes

DIGITS = Wanted((1, 8, 8), 10)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/fedsparse/data"


def digits(count: int = 30) -> Dataset:
    """The first of scikit-learn's digits, in steps of 1/8 from -1 to 1: exact as text, too."""
    whole = data.of(configuration.resolve({"data": {"name": "digits"}})).train
    return whole.take(np.arange(count))


def pixels(samples: Dataset) -> np.ndarray:
    """Images whose centred values are a quarter step of the digits', so bytes can hold them."""
    return ((samples.x[:, 0] + 1) * 100).astype(np.uint8)


def write_npz(folder: Path, samples: Dataset) -> Path:
    np.savez(folder / "own.npz", x=samples.x, y=samples.y)
    return folder / "own.npz"


def write_csv(folder: Path, samples: Dataset, header: bool = True) -> Path:
    flat = samples.x.reshape(len(samples), -1)
    with (folder / "own.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        if header:
            rows.writerow([*(f"pixel {i}" for i in range(flat.shape[1])), "digit"])
        rows.writerows([*map(float, x), int(y)] for x, y in zip(flat, samples.y, strict=True))
    return folder / "own.csv"


def write_bare_csv(folder: Path, samples: Dataset) -> Path:
    return write_csv(folder, samples, header=False)


def write_parquet(folder: Path, samples: Dataset) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    x = pa.array(samples.x.reshape(len(samples), 8, 8).tolist())
    pq.write_table(pa.table({"image": x, "label": samples.y}), folder / "own.parquet")
    return folder / "own.parquet"


def write_parquet_columns(folder: Path, samples: Dataset) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {f"p{i}": column for i, column in enumerate(samples.x.reshape(-1, 64).T)}
    pq.write_table(pa.table({**columns, "label": samples.y}), folder / "own.parquet")
    return folder / "own.parquet"


def write_saved(folder: Path, samples: Dataset) -> Path:
    library = pytest.importorskip("datasets", reason="needs the extra 'data'")
    library.disable_progress_bars()
    rows = {"image": samples.x.reshape(-1, 64).tolist(), "label": samples.y.tolist()}
    library.Dataset.from_dict(rows).save_to_disk(str(folder / "own"))
    return folder / "own"


EXACT = (write_npz, write_csv, write_bare_csv, write_parquet, write_parquet_columns, write_saved)


@pytest.mark.parametrize("write", EXACT, ids=lambda write: write.__name__)
def test_numbers_are_the_same_bits_from_every_kind_of_file(tmp_path, write):
    samples = digits()
    (x, y), test = node_files.read(write(tmp_path, samples), DIGITS)
    np.testing.assert_array_equal(x.reshape(-1, 1, 8, 8), samples.x)
    np.testing.assert_array_equal(y, samples.y)
    assert (x.dtype, y.dtype, test) == (np.float32, np.int64, None)


def write_idx(folder: Path, samples: Dataset, pack=lambda content: content, end: str = "") -> Path:
    for name, array in (("images-idx3", pixels(samples)), ("labels-idx1", samples.y)):
        content = pack(idx_bytes(array.astype(np.uint8)))
        (folder / f"train-{name}-ubyte{end}").write_bytes(content)
    return folder / f"train-images-idx3-ubyte{end}"


def write_idx_folder(folder: Path, samples: Dataset) -> Path:
    return write_idx(folder, samples).parent


def write_packed_idx(folder: Path, samples: Dataset) -> Path:
    return write_idx(folder, samples, gzip.compress, ".gz")


def write_images(folder: Path, samples: Dataset) -> Path:
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'data'")
    for number, (image_pixels, label) in enumerate(zip(pixels(samples), samples.y, strict=True)):
        place = folder / "own" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(image_pixels).save(place / f"{number:03}.png")
    return folder / "own"


def write_saved_images(folder: Path, samples: Dataset) -> Path:
    library = pytest.importorskip("datasets", reason="needs the extra 'data'")
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'data'")
    library.disable_progress_bars()
    kinds = library.Features(
        image=library.Image(), label=library.ClassLabel(names=[str(i) for i in range(10)])
    )
    rows = {"image": [image.fromarray(p) for p in pixels(samples)], "label": samples.y.tolist()}
    library.Dataset.from_dict(rows, features=kinds).save_to_disk(str(folder / "own"))
    return folder / "own"


IMAGES = (write_idx, write_idx_folder, write_packed_idx, write_images, write_saved_images)


@pytest.mark.parametrize("write", IMAGES, ids=lambda write: write.__name__)
def test_images_are_the_same_from_every_kind_of_file(tmp_path, write):
    samples = digits()
    (x, y), _ = node_files.read(write(tmp_path, samples), DIGITS)
    order = np.argsort(samples.y, kind="stable") if write is write_images else np.arange(30)
    expected = (pixels(samples)[order, None].astype(np.float32) - 127.5) / 63.75
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(y, samples.y[order])


def test_what_lies_apart_for_tests_is_for_tests(tmp_path):
    samples = digits()
    np.savez(
        *(tmp_path / "own.npz",),
        **{"x_train": samples.x[:20], "y_train": samples.y[:20]},
        **{"x_test": samples.x[20:], "y_test": samples.y[20:]},
    )
    _, test = node_files.read(tmp_path / "own.npz", DIGITS)
    assert test is not None
    np.testing.assert_array_equal(test[1], samples.y[20:])


def test_a_label_s_column_can_be_named(tmp_path):
    (tmp_path / "own.csv").write_text("class,a,b\n1,0.5,2\n0,1.5,-3\n")
    (x, y), _ = node_files.read(tmp_path / "own.csv", Wanted((2,), 2, label="class"))
    np.testing.assert_array_equal(x, np.array([[0.5, 2], [1.5, -3]], np.float32))
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize("names", ["0,1,label", "0,1,2", "a,b,2"])
def test_a_line_of_names_may_count_the_columns(tmp_path, names):
    (tmp_path / "own.csv").write_text(f"{names}\n0.5,2,1\n")
    (x, y), _ = node_files.read(tmp_path / "own.csv", Wanted((2,), 1))
    assert (x.tolist(), y.tolist()) == ([[0.5, 2.0]], [1.0])


def test_names_of_classes_are_numbered_alike_wherever_some_lack(tmp_path):
    """Numbered by what one node holds, its dogs would be another's cats."""
    (tmp_path / "own.tsv").write_text("0.5\tdog\n2\tcow\n3\tdog\n")
    (_, y), _ = node_files.read(tmp_path / "own.tsv", Wanted((1,), 3, ("cat", "dog", "cow")))
    assert y.tolist() == [1, 2, 1]
    with pytest.raises(DataError, match=r"'dog' is no number; set data\.labels"):
        node_files.read(tmp_path / "own.tsv", Wanted((1,), 3))
    with pytest.raises(DataError, match=r"'dog' is not in data\.labels; did you mean 'dogs'"):
        node_files.read(tmp_path / "own.tsv", Wanted((1,), 3, ("cats", "dogs", "cows")))


def test_names_of_classes_may_be_bytes_as_numpy_keeps_them(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.zeros((3, 2)), y=np.array([b"dog", b"cat", b"dog"]))
    (_, y), _ = node_files.read(tmp_path / "own.npz", Wanted((2,), 2, ("cat", "dog")))
    assert y.tolist() == [1, 0, 1]


def test_one_class_stands_for_real_targets(tmp_path):
    (tmp_path / "own.csv").write_text("1,2,0.25\n3,4,-1e3\n")
    (_, y), _ = node_files.read(tmp_path / "own.csv", Wanted((2,), 1))
    assert (y.dtype, y.tolist()) == (np.float32, [0.25, -1000.0])
    with pytest.raises(DataError, match=r"no whole numbers.*set data\.classes = 1"):
        node_files.read(tmp_path / "own.csv", Wanted((2,), 2))


MISTAKES = {
    "missing.npz": (None, "does not exist at this node; correct it"),
    "own.npy": (b"1", r"ends in '\.npy', which is no kind that is read; save it as one of \.csv"),
    "own.pt": (b"1", r"save it as one of \.csv, \.tsv, \.parquet, \.npz, or name it with 'idx'"),
    "own": (b"1", r"'.*own' ends in no known kind; save it as one of \.csv"),
    "own.csv.gz": (gzip.compress(b"1,2,0\n")[:-4], "is packed, and of packed .* unpack it"),
    "packed.csv": (gzip.compress(b"1,2,0\n"), "is packed by gzip; unpack it"),
    "own.npz": (b"PK", r"no readable \.npz file .*; copy it again, or save x and y anew"),
    "own_idx.csv": (b"1\n", "one column"),
    "empty.csv": (b"", "holds no samples"),
    "head.csv": (b"a,b\n", "holds no samples"),
    "one.csv": (b"1\n2\n", "one column"),
    "semicolons.csv": (b"1;2;0\n3;4;1\n", "one column.*parted by commas"),
    "spaces.tsv": (b"1 2 0\n3 4 1\n", "one column.*parted by tabs"),
    "gap.csv": (b"a,b,label\n1,2,0\n3,,1\n", "line 3, column b: '' is no number; fill the gap"),
    "nan.csv": (b"1,2,0\nnan,4,1\n", "NaN or infinity; clean them"),
    "infinite.csv": (b"1,2,0\n1e99,4,1\n", "NaN or infinity; clean them"),
    "short.csv": (b"1,2,0\n3,1\n", "line 2 has 2 cells, not 3"),
    "negative.csv": (b"1,2,0\n3,4,-1\n", "numbers from 0 on"),
    "nanlabel.csv": (b"1,2,0\n3,4,nan\n", "labels hold NaN, a gap"),
    "latin.csv": (b"1,2,\xff\n", "no UTF-8 text"),
    "zero.csv": (b"1,2,\0\n", "label"),
    "lines.csv": (b'1,2,0\n3,"a\n\x1b[2Jb",1\n', r"'a \?\[2Jb' is no number"),
    "own.parquet": (b"PAR1", "no readable Parquet file: .*; copy it again, or save it anew"),
    "own-idx3-ubyte": (b"\0\0\x08\x01\0\0\0\x01a", "no labels beside it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_the_file_and_the_remedy(tmp_path, name):
    content, told = MISTAKES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FedSparseError, match=told) as error:
        node_files.read(tmp_path / name, Wanted((2,), 2))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_that_do_not_belong_together_are_named(tmp_path):
    path = tmp_path / "own.npz"
    for arrays, told in (
        ({"x": np.zeros((3, 2))}, "no array 'y', it has x"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, "3 samples, 2 labels"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 1), int)}, "labels have shape"),
        ({"x": np.zeros((3, 2), complex), "y": np.zeros(3, int)}, "samples are complex128"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "b", "c"])}, r"set data\.labels"),
        (
            {"x": np.array([[{}]] * 3, object), "y": np.zeros(3, int)},
            r"'x\.npy' holds Python objects, which are not read; save numbers",
        ),
        (
            {"x": np.zeros((3, 2)), "y": np.array(["a", None, 1], object)},
            r"'y\.npy' holds .* texts as labels \(dtype str\)",
        ),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=told):
            node_files.read(path, Wanted((2,), 2))


def test_an_array_that_says_more_than_it_holds_is_not_made(tmp_path):
    """Found by reading: numpy takes the header's word and asks for the memory."""
    path = tmp_path / "own.npz"
    np.savez(path, x=np.zeros((1000, 2)), y=np.zeros(1000, int))
    path.write_bytes(path.read_bytes().replace(b"(1000, 2)", b"(9e99, 2)"))
    with pytest.raises(DataError, match=r"no readable \.npz"):
        node_files.read(path, Wanted((2,), 2))
    np.savez(path, x=np.zeros((1000, 2)), y=np.zeros(1000, int))
    path.write_bytes(path.read_bytes().replace(b"(1000, 2)", b"(9999, 2)"))
    with pytest.raises(DataError, match="holds 16128 bytes, its header says 160112"):
        node_files.read(path, Wanted((2,), 2))
    np.savez(path, x=np.zeros((1000, 2)), y=np.zeros(1000, int))
    path.write_bytes(path.read_bytes().replace(b"(1000, 2)", b"(1000, 2("))
    with pytest.raises(DataError, match=r"no readable \.npz"):
        node_files.read(path, Wanted((2,), 2))


IDX = idx_bytes(np.arange(9 * 64, dtype=np.uint8).reshape(9, 8, 8))
BROKEN_IDX = {
    "cut pack": (gzip.compress(IDX)[:-9], "is cut off or damaged: .*; copy it again"),
    "damaged pack": (gzip.compress(IDX)[:-8] + bytes(8), "is cut off or damaged: .*; copy it"),
    "samples": (IDX[:-30], "holds 562 bytes, its header says 592; copy it again, it is cut off"),
    "too many": (IDX + b"1", "holds 593 bytes, .* it is damaged"),
    "header": (IDX[:9], "ends within its header, after 9 bytes; copy it again, it is cut off"),
    "nothing": (b"", "is no IDX file: it is empty; copy it again, or give another file"),
    "another kind": (
        b"\x89PNG",
        "is no IDX file: it starts with 89504e47; copy it again, or give another file",
    ),
}


@pytest.mark.parametrize("name", BROKEN_IDX)
def test_an_idx_file_that_is_cut_off_or_damaged_is_to_be_copied_again(tmp_path, name):
    content, told = BROKEN_IDX[name]
    write_idx(tmp_path, digits(9)).write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte' {told}"):
        node_files.read(tmp_path, DIGITS)


def test_a_saved_dataset_that_is_cut_off_is_to_be_copied_again(tmp_path):
    (arrow,) = write_saved(tmp_path, digits()).glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:400])
    told = r"cannot be read as a saved Hugging Face dataset: .*; copy it again, or save it anew"
    with pytest.raises(DataError, match=told):
        node_files.read(arrow.parent, DIGITS)


def test_folders_say_what_they_lack(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data of a known kind"):
        node_files.read(tmp_path / "empty", DIGITS)
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/cat/a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"photos' holds no images .*; put some .* \.png, \.jpg,"):
        node_files.read(tmp_path / "photos", DIGITS)
    (tmp_path / "photos/cat/a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="no readable image"):
        node_files.read(tmp_path / "photos", DIGITS)
    with pytest.raises(DataError, match=r"holds images, the run's model takes 64; set data\.shape"):
        node_files.read(tmp_path / "photos", Wanted((64,), 10))


# -- what a client gets of them -----------------------------------------------------------

NODES = {"data": {"name": "nodes", "shape": "1x8x8"}}


def own(told, *assignments, client=0):
    return node.federated(
        configuration.resolve(configuration.override(NODES, assignments)), told, client
    )


def test_a_node_s_samples_are_split_as_a_part_of_the_data_set_is(tmp_path):
    config = configuration.resolve({"data": {"name": "digits"}, "fleet": {"clients": 4}})
    whole = data.of(config)
    path = write_npz(tmp_path, whole.train.take(np.sort(whole.partition[2])))
    expected = whole.client(2)
    found = own({"data-path": str(path)}, "fleet.clients=4", client=2).client(2)
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)


def test_a_test_path_leaves_all_the_rest_to_train_on(tmp_path):
    samples = digits()
    (tmp_path / "test").mkdir()
    path, test = write_npz(tmp_path, samples), write_csv(tmp_path / "test", samples.take([3, 4]))
    found = own({"data-path": str(path), "test-path": str(test)}).client(0)
    np.testing.assert_array_equal(found.train.x, samples.x)
    np.testing.assert_array_equal(found.test.y, samples.y[3:5])


def test_what_is_missing_is_named_by_the_key_that_says_it(tmp_path):
    path = write_npz(tmp_path, digits())
    gone = str(tmp_path / "gone.npz")
    for told, key in (
        ({"data-path": gone}, "data-path"),
        ({"data-path": str(path), "test-path": gone}, "test-path"),
    ):
        with pytest.raises(DataError, match=rf"^{key} = '.*gone\.npz' does not exist at this node"):
            own(told)
    with pytest.raises(DataError, match=r"^data\.path = '.*' does not exist at the server; corr"):
        data.of(configuration.resolve(configuration.override(NODES, [f"data.path={gone}"])))


def test_a_path_that_no_file_can_have_is_refused():
    with pytest.raises(ConfigError, match=r"data-path = .* is no text"):
        own({"data-path": "/a\0b"})
    for key in ("data-path", "cache-path"):
        told = {"data-path": "/a", key: "~nobody-at-all/x"}
        with pytest.raises(ConfigError, match=f"^{key} = '~nobody-at-all/x': nobody has such a"):
            own(told)


def test_samples_are_decoded_once_and_mapped_by_the_next_process(tmp_path, cache, monkeypatch):
    path = write_csv(tmp_path, digits())
    first = own({"data-path": str(path)}).client(0).train
    node._mapped.cache_clear()  # as in another process
    monkeypatch.setattr(node_files, "read", lambda *_: pytest.fail("parsed a second time"))
    again = own({"data-path": str(path)}).client(0).train
    np.testing.assert_array_equal(again.x, first.x)
    assert len(list(cache.iterdir())) == 4


def test_another_folder_can_keep_them_and_changed_files_are_read_anew(tmp_path, cache):
    told = {"data-path": str(tmp_path / "own.csv"), "cache-path": str(tmp_path / "kept")}
    write_csv(tmp_path, digits(30))
    assert len(own(told).train) == 30
    write_csv(tmp_path, digits(31))
    assert len(own(told).train) == 31
    assert not cache.exists()
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_a_server_that_wants_something_else_each_time_fills_no_disk(tmp_path, cache):
    path = write_csv(tmp_path, digits())
    for classes in (10, 11, 12):
        wanted = ("data.name=nodes", "data.shape=1x8x8", f"data.classes={classes}")
        assert own({"data-path": str(path)}, *wanted).classes == classes
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_cache_is_made_again(tmp_path, cache):
    path = write_csv(tmp_path, digits())
    own({"data-path": str(path)})
    for kept in cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:40])
    node._mapped.cache_clear()
    np.testing.assert_array_equal(own({"data-path": str(path)}).train.x, digits().x)


def test_a_cache_that_cannot_be_written_is_told_once_and_done_without(tmp_path, caplog):
    path, file = write_csv(tmp_path, digits()), tmp_path / "file"
    file.write_text("no folder")
    told = {"data-path": str(path), "cache-path": str(file)}
    config = configuration.resolve(NODES)
    assert schema.read(node.told(config, told)).samples == 30
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"cache-path = '{file}' cannot keep decoded samples (it is no folder)")
    assert line.endswith("let the node write there, or set cache-path to another folder")
    np.testing.assert_array_equal(own(told).train.x, digits().x)
    assert len(caplog.records) == 1


def test_a_cache_that_is_written_is_not_told_of(tmp_path, caplog):
    told = {"data-path": str(write_csv(tmp_path, digits())), "cache-path": str(tmp_path / "kept")}
    node.told(configuration.resolve(NODES), told)
    assert not caplog.records


def test_a_folder_is_another_when_one_of_its_files_is(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").write_text("1")
    before = decoded.state_of(tmp_path)
    (tmp_path / "a/2").write_text("2")
    assert decoded.state_of(tmp_path) != before


def test_data_of_another_shape_say_so(tmp_path):
    path = write_npz(tmp_path, digits())
    with pytest.raises(DataError, match="samples are 1x8x8, the run's model takes 1x9x9; convert"):
        own({"data-path": str(path)}, "data.shape=1x9x9")
    with pytest.raises(DataError, match="highest label is 9, the run's classes are 0 to 4"):
        own({"data-path": str(path)}, "data.classes=5")


def test_a_node_is_told_in_texts_and_of_data_first(tmp_path):
    with pytest.raises(ConfigError, match="data-path = 3 is no text"):
        own({"data-path": 3})
    with pytest.raises(ConfigError, match="'label' and no 'data-path'"):
        own({"label": "digit"})
    with pytest.raises(DataError, match=r"this node has no data, and data\.name = 'nodes'"):
        own({})


def test_rows_of_a_data_set_that_is_not_there_cannot_be_forgotten(tmp_path):
    path = write_npz(tmp_path, digits())
    with pytest.raises(DataError, match=r"forget\.samples names rows"):
        own({"data-path": str(path)}, "forget.samples=1,2")
    left = own({"data-path": str(path)}, "forget.classes=0-4").client(0).train
    assert set(left.y.tolist()) == {5, 6, 7, 8, 9}


# -- what the server has, and what nodes tell it ------------------------------------------


def test_the_server_s_own_file_is_its_test_set_and_public_samples(tmp_path):
    path = write_npz(tmp_path, digits())
    found = data.of(
        configuration.resolve(
            configuration.override(NODES, [f"data.path={path}", "data.public_samples=10"])
        )
    )
    assert (len(found.public), len(found.test), len(found.train)) == (10, 20, 0)
    assert (found.input_shape, found.classes, found.clients) == ((1, 8, 8), 10, 10)
    with pytest.raises(DataError, match="leave none for tests"):
        data.of(configuration.resolve(configuration.override(NODES, [f"data.path={path}"])))


def test_without_a_shape_the_model_is_not_known():
    with pytest.raises(ConfigError, match=r"needs data\.shape"):
        data.of(configuration.resolve({"data": {"name": "nodes"}}))
    with pytest.raises(ConfigError, match=r"data\.labels.*distinct names"):
        configuration.resolve({"data": {"labels": "cat,cat"}})
    with pytest.raises(DataError, match="digits has samples of 1x8x8 and 10 classes"):
        data.of(configuration.resolve({"data": {"name": "digits", "shape": "64"}}))


@pytest.mark.parametrize("shape", ["8by8", "0x8", "8,8", "8x", "", "1x2x3x4x5", [1, 8, 8], 8.0, -8])
def test_a_shape_that_is_none_is_told_in_plain_words_with_an_example(shape):
    told = f"data.shape = {shape!r}: must be one to four whole numbers above 0 with x between them"
    with pytest.raises(ConfigError, match=re.escape(told) + ".* such as '1x28x28' .* '64'"):
        configuration.resolve({"data": {"name": "nodes", "shape": shape}})


@pytest.mark.parametrize("said", ["data.shape=64", "data.shape='64'"])
def test_a_row_s_shape_may_be_a_number(said):
    config = configuration.resolve(configuration.override(NODES, [said]))
    assert configuration.from_json(config.to_json()).data.input_shape == (64,)


def test_a_schema_travels_and_whatever_else_comes_is_told():
    known = schema.schema_of(digits())
    assert schema.read(known.record()) == known
    assert (known.samples, known.shape, known.seen, known.highest) == (30, (1, 8, 8), 10, 9)
    assert schema.read(schema.problem_record("'/a.csv' is missing")) == "'/a.csv' is missing"
    for key, value in (
        *(("shape", "8x-8"), ("shape", 3), ("samples", -1), ("samples", 2**60)),
        *(("dtype", "\x1b[2J"), ("dtype", ""), ("dtype", "float32" * 10)),
    ):
        record = known.record()
        record[key] = value
        assert "install the same fedsparse" in schema.read(record)


def test_a_problem_that_a_node_tells_is_one_line_of_print_and_bounded():
    """Whoever is a node can write it: it must not move the cursor, nor fill the screen."""
    for told, shown in (
        ("first\n\x1b[2Jlast\r\n \n", "?[2Jlast"),
        ("a\x07b\u202ec\x9bd\ud800", "a?b?c?d?"),
        ("tab\tand\xa0space", "tab and space"),
        (" \r\n\x0b", "no reason given"),
    ):
        assert schema.read(ConfigRecord({"problem": told})) == shown
    long = schema.read(ConfigRecord({"problem": f"'/{'x' * 10**6}.csv' is cut off; copy it again"}))
    assert len(long) <= 300
    assert long.startswith("'/xxx")
    assert long.endswith("is cut off; copy it again")
