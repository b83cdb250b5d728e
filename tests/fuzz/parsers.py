"""Every parser that sees foreign bytes: valid inputs to begin with, and how it is called.

A parser is given bytes and a folder to write them into. It may return, or raise an error of the
family in `fedsparse/errors.py`; anything else is a finding.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from clients import kept_state
from clients.kept_state import Kept
from edge_export import device_json, emit, network, reading
from edge_export.storage import Storage
from fedsparse import config as configuration
from fedsparse import description, messages, models, wire
from fedsparse.data import Dataset, node_files, schema, sources
from fedsparse.data.node_files import Wanted
from fedsparse.devices import traces
from fedsparse.errors import FedSparseError
from fedsparse.runs import RunFolder, checkpoint, tables
from fedsparse.runs.ledger import Ledger
from fedsparse.sections import DataConfig
from fedsparse.sparsity import Mask
from simulations.grid import CohortGrid
from simulations.states import NAME, ClientStates
from strategies.replies import Reader
from tests.tiny_runs import run, tiny

SCHEMA = wire.Schema((("conv.weight", (3, 2, 3, 3)), ("conv.bias", (3,)), ("out", (40, 25))))
COVERED = ("conv.weight", "out")
QUICK = (
    *("model.name=mlp", "model.width=0.25", "data.samples=60", "data.public_samples=20"),
    *("data.test_samples=20", "run.rounds=1", "strategy.name=static", "strategy.density=0.2"),
    *("strategy.pretrain_epochs=1", "fleet.clients=2"),
)


@dataclass(frozen=True)
class Parser:
    """Valid inputs, what is done with an input, and what of it must be put right afterwards."""

    corpus: Callable[[], Sequence[bytes]]
    parse: Callable[[bytes, Path], object]
    seal: Callable[[bytes], bytes] | None = None
    """Makes a checksum fit, as an attacker's would; done to half of the inputs."""


def each(*calls: Callable[[], object]) -> None:
    """Make every call, whichever of them refuse."""
    for call in calls:
        with suppress(FedSparseError):
            call()
    calls[0]()  # so that it is known whether it refused


# -- the wire ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _mask() -> Mask:
    rng = np.random.default_rng(3)
    return Mask.from_arrays({n: rng.random(SCHEMA.shape(n)) < 0.3 for n in COVERED})


@lru_cache(maxsize=1)
def payloads() -> list[bytes]:
    rng = np.random.default_rng(4)
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in SCHEMA.tensors}
    return [
        wire.encode(state, mask=mask, mode=mode, base=_mask(), values=kind)
        for kind in ("f32", "f16", "int8")
        for mask, mode in ((_mask(), "full"), (_mask(), "shared"), (_mask(), "delta"))
    ]


def sealed(content: bytes) -> bytes:
    return content[:-4] + zlib.crc32(content[:-4]).to_bytes(4, "little")


def _wire(content: bytes, folder: Path) -> None:
    each(
        lambda: wire.decode(content, SCHEMA, masks=(_mask(),)),
        lambda: wire.decode_flat(content, SCHEMA, _mask()),
    )


def masks() -> list[bytes]:
    return [_mask().to_bytes(), wire.encode_mask(_mask())]


def _masks(content: bytes, folder: Path) -> None:
    each(lambda: Mask.from_bytes(content), lambda: wire.decode_mask(content, _mask().shapes))


# -- messages ------------------------------------------------------------------------------


def replies() -> list[bytes]:
    told = {"num-examples": 10, "loss": 0.5, "accuracy": 0.1, "train-flops": 1e6}
    return [json.dumps(told).encode(), json.dumps(told | {"memory-bytes": 3}).encode()]


def _reply(content: bytes, folder: Path) -> None:
    """Read a reply whose figures are any that JSON can say."""
    record = _record(content, MetricRecord)
    arrays = wire.pack(payloads()[1])
    CohortGrid("clients.client_app:app", clients=1)
    asked = Message(RecordDict(), 1000, messages.TRAIN)
    body = RecordDict({messages.ARRAYS: arrays, messages.METRICS: record})
    with suppress(KeyError):  # something lacks, which the server names
        Reader(SCHEMA, (_mask(),)).open(0, Message(body, reply_to=asked))


def configs() -> list[bytes]:
    record = messages.write_config(tiny(*QUICK), messages.Plan(1, grow={"a": 3}))
    return [json.dumps(dict(record.items())).encode()]


def _config_record(content: bytes, folder: Path) -> None:
    messages.read_config(_record(content, ConfigRecord))


@lru_cache(maxsize=1)
def descriptions() -> list[bytes]:
    """What is told of two models, unpacked: a mutation of what is packed seldom unpacks."""
    shapes = {"cnn": (3, 32, 32), "mlp": (16,)}
    built = {n: models.build(n, input_shape=s, classes=10, width=0.5) for n, s in shapes.items()}
    told = [description.described(model, shapes[name]) for name, model in built.items()]
    return [zlib.decompress(content) for content in told if content is not None]


def _description(content: bytes, folder: Path) -> None:
    each(lambda: description.read(zlib.compress(content)), lambda: description.read(content))


def _record(content: bytes, kind: type) -> object:
    try:
        told = json.loads(content)
        return kind({str(k): v for k, v in dict(told).items()})
    except (ValueError, TypeError, RecursionError, UnicodeDecodeError, OverflowError):
        return kind({})  # Flower's own records refuse it


# -- files ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def run_files() -> dict[str, bytes]:
    """Return the files of a small run, by name."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        run(out, *QUICK)
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def of_run(pattern: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [content for name, content in run_files().items() if Path(name).match(pattern)]


def _put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _run_json(content: bytes, folder: Path) -> None:
    _put(folder, "config.toml", run_files()["config.toml"])
    _put(folder, "run.json", content)
    opened = RunFolder.open(folder)
    assert opened.config is not None
    opened.lost()


def _toml(content: bytes, folder: Path) -> None:
    configuration.resolve(configuration.read_toml(_put(folder, "config.toml", content)))


def _clients(content: bytes, folder: Path) -> None:
    tables.read_parquet(_put(folder, "clients.parquet", content))


def _metrics(content: bytes, folder: Path) -> None:
    from fedsparse.runs import rows

    path = _put(folder, "metrics.jsonl", content)
    found = rows.until(tables.read(path), 1)
    rows.check_metrics(path, found, 1)


def _ledger(content: bytes, folder: Path) -> None:
    _put(folder, "ledger.jsonl", content)
    ledger = Ledger(folder)
    each(ledger.verified, lambda: ledger.until(1))


def checkpoints() -> list[bytes]:
    """Each is its JSON, a zero byte, and its tensors."""
    found = run_files()
    names = [n for n in found if n.startswith("checkpoints/") and n.endswith(".json")]
    return [
        found[n] + b"\0" + found[f"checkpoints/{json.loads(found[n])['checkpoint']['tensors']}"]
        for n in names
    ]


def _checkpoint(content: bytes, folder: Path) -> None:
    head, _, tensors = content.partition(b"\0")
    _put(folder, "000001.json", head)
    try:
        name = json.loads(head)["checkpoint"]["tensors"]
        if isinstance(name, str) and name.isascii() and "/" not in name and len(name) < 99:
            _put(folder, name, tensors)
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        pass
    checkpoint.load(folder, 1)


def _states(content: bytes, folder: Path) -> None:
    _put(folder, NAME, content)
    states = ClientStates(folder)
    try:
        states.restore(1, {"clients": 2, "mark": "0" * 64})
        states.all()
    finally:
        states.close()


@lru_cache(maxsize=1)
def tflite() -> list[bytes]:
    made = []
    for sparse in (True, False):
        model = models.build_seeded("mlp", input_shape=(1, 8, 8), classes=10, width=0.25, seed=0)
        for name, value in model.named_parameters():
            if name.endswith("weight"):
                value.data[value.data.abs() < value.data.abs().mean()] = 0
        found = network.of(model.eval(), (1, 8, 8))
        made.append(emit.emit(found, Storage(sparse=sparse)).content)
    return made


def _tflite(content: bytes, folder: Path) -> None:
    for tensor in reading.sparse_tensors(content, "file.tflite"):
        assert tensor.csr is not None


def device_files() -> list[bytes]:
    result = {"file": "a.tflite", "seconds": {"p50": 0.01, "mean": 0.02}, "sha256": "0" * 64}
    export = {"macs": 100, "kept_macs": 10, "layout": "sparse", "values": "f32"}
    body = {
        **{"format": "fedsparse-device", "version": 1, "name": "phone", "threads": 2},
        **{"runtime": {"name": "litert", "version": "2"}, "machine": {"memory_bytes": 1e9}},
        "results": [result | {"export": export}, result | {"file": "b.tflite"}],
    }
    counts = {"core": "a", "runtime": "b", "runtime_version": "c", "results": [{"file": "a/b"}]}
    counts["results"] = [{"file": "a/b.tflite", "instructions": 3}]
    return [json.dumps(body).encode(), json.dumps(counts).encode()]


def _device(content: bytes, folder: Path) -> None:
    device_json.read(_put(folder, "device.json", content))


NETWORK = b"seconds,up_bytes_per_second,down_bytes_per_second,client\n0,10,20,a\n5,0,3,a\n9,1,1,a\n"
SPEEDS = b"client,computation,communication\n1,20.5,3000\n2,11,1e3\n"
HOURS = b"client,active,inactive,finish_time\n1,0,10,100\n1,20,30,100\n2,5,6,50\n"
SPEEDS_JSON = b'{"1": {"computation": 20.5, "communication": 3000}}'
HOURS_JSON = b'{"1": {"active": [0, 20], "inactive": [10, 30], "finish_time": 100}}'


def _traces(content: bytes, folder: Path) -> None:
    readers = (traces.read_network, traces.read_speeds, traces.read_presence)
    for kind in ("csv", "json"):
        path = _put(folder, f"trace.{kind}", content)
        for read in readers[1 if kind == "json" else 0 :]:
            try:
                read(path)
            except FedSparseError:
                continue


def _idx(dims: tuple[int, ...]) -> bytes:
    head = bytes([0, 0, 8, len(dims)]) + b"".join(d.to_bytes(4, "big") for d in dims)
    return head + bytes(i % 251 for i in range(int(np.prod(dims))))


def idx_files() -> list[bytes]:
    return [_idx((4, 3, 3)), _idx((7,)), gzip.compress(_idx((5, 2, 2)), mtime=0)]


def _idx_read(content: bytes, folder: Path) -> None:
    for name in ("a", "a.gz"):
        try:
            sources.read_idx(_put(folder, name, content))
        except FedSparseError:
            continue


def npz_files() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, x=np.zeros((10, 3), np.float32), y=np.arange(10) % 2)
        found.append(buffer.getvalue())
    return found


def _npz(content: bytes, folder: Path) -> None:
    path = _put(folder, "a.npz", content)
    sources.npz(DataConfig(name="npz", path=str(path)), 0)


# -- what lies at a node -------------------------------------------------------------------

TEXTS = (
    *(b"a,b,c,label\n1,2,3,0\n4,5.5,-6e2,1\n", b"1,2,3,0\n\n4,5,6,1\n7,8,9,1\n"),
    *(b'"a","b","c d","label"\r\n0.5,2,3,"1"\r\n', b"\xef\xbb\xbf1\t2\t3\tdog\n3\t1\t2\tcat\n"),
)


WANTED = (Wanted((3,), 2), Wanted((3,), 2, ("cat", "dog")), Wanted((3,), 1))


def tables_of_nodes() -> list[bytes]:
    return list(TEXTS)


def _of_node(names: Sequence[str]) -> Callable[[bytes, Path], None]:
    """Return what reads bytes as a node's own file, under each name."""

    def parse(content: bytes, folder: Path) -> None:
        wanted = WANTED[len(content) % len(WANTED)]
        each(*(partial(node_files.read, _put(folder, name, content), wanted) for name in names))

    return parse


@lru_cache(maxsize=1)
def parquet_files() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for columns in (
        {"a": [1.0, 2.0], "b": [1, 2], "c": [0.5, 1.5], "label": [0, 1]},
        {"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "label": ["dog", "cat"]},
    ):
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        found.append(buffer.getvalue())
    return found


def own_npz_files() -> list[bytes]:
    found = []
    for y in (np.arange(10) % 2, np.array(["cat", "dog"] * 5)):
        buffer = io.BytesIO()
        np.savez(buffer, x=np.zeros((10, 3), np.float32), y=y)
        found.append(buffer.getvalue())
    return found


def kept_states() -> list[bytes]:
    array = [*("uint8", [3], "numpy.ndarray"), b"abc"]
    state = {"arrays": {"a": {"payload": array}}, "metrics": {"m": {"n": 1}}}
    kept = [Kept("0" * 64, 1, {}, state), Kept("1" * 64, 2, state, {"configs": {"c": {"t": b"x"}}})]
    return [kept_state.encode(one) for one in kept]


def _hashed(content: bytes) -> bytes:
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


def _kept_state(content: bytes, folder: Path) -> None:
    kept_state.read(_put(folder, "run-1-client-0.state", content))


def schemas() -> list[bytes]:
    told = schema.schema_of(Dataset(np.zeros((3, 1, 8, 8), np.float32), np.arange(3), 10))
    return [json.dumps(dict(told.record().items())).encode(), b'{"problem": "no file"}']


def _schema(content: bytes, folder: Path) -> None:
    told = schema.read(_record(content, ConfigRecord))
    if isinstance(told, str):
        assert "\n" not in told
    else:
        told.misfit((1, 8, 8), 10, False)


PARSERS: dict[str, Parser] = {
    "wire": Parser(payloads, _wire, sealed),
    "masks": Parser(masks, _masks, sealed),
    "replies": Parser(replies, _reply),
    "messages' configuration": Parser(configs, _config_record),
    "descriptions": Parser(descriptions, _description),
    "TOML": Parser(of_run("config.toml"), _toml),
    "run.json": Parser(of_run("run.json"), _run_json),
    "metrics.jsonl": Parser(of_run("metrics.jsonl"), _metrics),
    "clients.parquet": Parser(of_run("clients.parquet"), _clients),
    "ledger": Parser(of_run("ledger.jsonl"), _ledger),
    "checkpoints": Parser(checkpoints, _checkpoint),
    "clients.sqlite": Parser(of_run("clients.sqlite"), _states),
    "tflite": Parser(tflite, _tflite),
    "device.json": Parser(device_files, _device),
    "traces": Parser(lambda: [NETWORK, SPEEDS, HOURS, SPEEDS_JSON, HOURS_JSON], _traces),
    "IDX": Parser(idx_files, _idx_read),
    "NPZ": Parser(npz_files, _npz),
    "nodes' CSV": Parser(tables_of_nodes, _of_node(("own.csv", "own.tsv"))),
    "nodes' Parquet": Parser(parquet_files, _of_node(("own.parquet",))),
    "nodes' NPZ": Parser(own_npz_files, _of_node(("own.npz",))),
    "nodes' schemas": Parser(schemas, _schema),
    "clients' kept states": Parser(kept_states, _kept_state, _hashed),
}
