"""Devices: profiles of what clients train on, fleets of them, and traces of real ones.

The simulated clock asks `load(config.fleet, seed)` for a fleet, and the fleet for each
client's device: seconds, joules, and when it is there.
"""

from fedsparse.devices.device import Device
from fedsparse.devices.fleet import Columns, Fleet, load
from fedsparse.devices.profile import Availability, Profile

__all__ = ["Availability", "Columns", "Device", "Fleet", "Profile", "load"]
