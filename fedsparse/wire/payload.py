"""The payload: a model, or an update, as the bytes that are sent and counted.

    magic "FSPW" | version 1 | mode | values | 0 | schema digest (8)
    full:    one bit a tensor: masked or not
    shared:  digest (16) of the mask that both sides hold
    delta:   digest (16) of the mask that the flips are counted from
    then, for each tensor of the schema, in order:
      not masked:     its values
      masked, full:   index section, values of the kept; or 4, and all its values
      masked, shared: values of the kept
      masked, delta:  index section of the flipped positions, values of the kept
    CRC-32 of everything before (4)

Names and shapes never travel: the receiver knows the schema. Everything that a payload
declares is checked against the schema and its own length before memory is taken for it.
"""

import struct
from typing import Literal

MAGIC = b"FSPW"
VERSION = 1
Mode = Literal["full", "shared", "delta", "auto"]
Kind = Literal["f32", "f16", "bf16", "int8"]
MODES = ("full", "shared", "delta")
HEAD = struct.Struct("<4sBBBx8s")
CRC = struct.Struct("<I")
DIGEST = 16
NONZERO = 4
"""Index kind of a masked tensor that is sent dense: its kept entries are those not zero."""

UNLIKE = "the payload is masked unlike the model that was sent"

NOT_HELD = "which this side does not hold"
"""How the reason ends against a payload that leaves out a mask which the receiver has not."""
