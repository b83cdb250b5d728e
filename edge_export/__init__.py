"""Edge export: what turns a finished run into a model file for a device."""
