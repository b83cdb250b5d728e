"""What a model file costs: time and memory on this machine, instructions on emulated ARM."""
