"""A payload as one vector: what `decode_kept` returns, tensor by tensor."""

import numpy as np
import pytest

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.sparsity import Mask

RNG = np.random.default_rng(0)
STATE = {n: RNG.normal(size=s).astype(np.float32) for n, s in (("w", (6, 5)), ("b", (5,)))}
SCHEMA = wire.Schema.of(STATE)
MASK = Mask.from_arrays({"w": RNG.random((6, 5)) < 0.4})
OTHER = Mask.full(MASK.shapes) - MASK


@pytest.mark.parametrize("values", ["f32", "bf16", "int8"])
@pytest.mark.parametrize(("mask", "mode"), [(None, "full"), (MASK, "full"), (MASK, "shared")])
def test_it_holds_the_kept_values_in_order(values, mask, mode):
    payload = wire.encode(STATE, mask=mask, mode=mode, values=values)
    kept = wire.decode_kept(payload, SCHEMA, mask)
    flat, largest = wire.decode_flat(payload, SCHEMA, mask)
    np.testing.assert_array_equal(flat, np.concatenate([v.reshape(-1) for v in kept.values()]))
    assert largest in (None, np.abs(flat).max())


@pytest.mark.parametrize(
    ("payload", "mask", "reason"),
    [
        (wire.encode(STATE, mask=MASK), None, "masked unlike"),
        (wire.encode(STATE), MASK, "masked unlike"),
        (wire.encode(STATE, mask=OTHER, mode="shared"), MASK, "does not hold"),
        (wire.encode({**STATE, "b": np.full(5, np.nan, np.float32)}), None, "NaN or infinity"),
        (wire.encode(STATE)[:-1], None, "damaged"),
    ],
)
def test_what_decode_kept_refuses_is_refused(payload, mask, reason):
    for decode in (wire.decode_kept, wire.decode_flat):
        with pytest.raises(WireError, match=reason):
            decode(payload, SCHEMA, mask)
