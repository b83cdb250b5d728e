"""What a node tells of its own data before a run, and whether that fits the run's model.

It tells shapes, counts and the highest label, never a sample. What comes from a node is foreign:
it is read as far as it is what it should be.
"""

from dataclasses import dataclass
from math import prod

from flwr.app import ConfigRecord

from fedsparse.data.samples import Dataset
from fedsparse.errors import one_line

MOST_SAMPLES = 2**53
LONGEST = 64


@dataclass(frozen=True)
class Schema:
    """A node's own data: how many samples, of which shape and type, with which labels.

    `seen` is the number of classes among the labels and `highest` the largest of them; they are
    0 and -1 for real-valued targets.
    """

    samples: int
    shape: tuple[int, ...]
    dtype: str
    seen: int
    highest: int

    def record(self) -> ConfigRecord:
        """Return the schema as it travels."""
        return ConfigRecord(
            {
                "samples": self.samples,
                "shape": shape_text(self.shape),
                "dtype": self.dtype,
                "classes-seen": self.seen,
                "highest-label": self.highest,
            }
        )

    def misfit(self, shape: tuple[int, ...], classes: int, tokens: bool) -> str | None:
        """Return why no model of such an input and so many classes takes these data, or None.

        A flat row of as many numbers as the input has is put into its shape, and fits.
        """
        if not self.samples:
            return "it has no samples; point data-path at some, or leave the node out"
        flat = len(self.shape) == 1 and self.shape[0] == prod(shape)
        if self.shape != shape and not flat:
            return (
                f"its samples are {shape_text(self.shape)}, the run's model takes "
                f"{shape_text(shape)}; convert them, or set data.shape for all nodes"
            )
        if tokens != self.dtype.startswith("int"):
            wants, has = ("tokens", "numbers") if tokens else ("numbers", "tokens, as integers are")
            return (
                f"its samples are {has}, the run's model takes {wants}; "
                f"save them as {'integers' if tokens else 'float32'}"
            )
        if (classes == 1) != (self.highest < 0):
            has = "real numbers" if self.highest < 0 else f"classes up to {self.highest}"
            wants = "real numbers" if classes == 1 else f"the classes 0 to {classes - 1}"
            return f"its labels are {has}, the run's are {wants}; set data.classes, or correct them"
        if classes > 1 and self.highest >= classes:
            return (
                f"its highest label is {self.highest}, the run's classes are 0 to {classes - 1}; "
                "correct the labels, or raise data.classes for all nodes"
            )
        return None


def problem_record(text: str) -> ConfigRecord:
    """Return the record of a node whose data cannot be read, with the reason."""
    return ConfigRecord({"problem": one_line(text)})


def read(record: ConfigRecord) -> Schema | str:
    """Return the schema that a node tells, or why there is none."""
    problem = record.get("problem")
    if isinstance(problem, str):
        return one_line(problem)
    shape, dtype = record.get("shape"), record.get("dtype")
    numbers = [record.get(key) for key in ("samples", "classes-seen", "highest-label")]
    if (
        not isinstance(shape, str)
        or not isinstance(dtype, str)
        or max(len(shape), len(dtype)) > LONGEST
        or not all(part.isascii() and part.isdecimal() for part in shape.split("x"))
        or not (dtype.isascii() and dtype.isalnum())
    ):
        return "it tells no schema of its data; install the same fedsparse there"
    counts = [n for n in numbers if isinstance(n, int) and -1 <= n <= MOST_SAMPLES]
    if len(counts) < 3 or counts[0] < 0:
        return "it tells impossible numbers of its data; install the same fedsparse there"
    return Schema(counts[0], tuple(map(int, shape.split("x"))), dtype, counts[1], counts[2])


def schema_of(data: Dataset) -> Schema:
    """Return what is told of some samples."""
    real = data.y.dtype.kind == "f"
    labels = [] if real or not len(data) else sorted(set(data.y.tolist()))
    shape = tuple(int(size) for size in data.x.shape[1:])
    highest = -1 if real or not labels else int(labels[-1])
    return Schema(len(data), shape, str(data.x.dtype), len(labels), highest)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as `data.shape` says it, such as 1x28x28."""
    return "x".join(map(str, shape))
