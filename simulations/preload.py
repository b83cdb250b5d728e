"""What a process that Ray keeps ready imports before it becomes a worker."""

import importlib
from contextlib import suppress

from simulations import garbage

# Modules are made of objects that stay: looking for garbage takes a tenth of the import.
# What fails here will be told where it is used; raised here, it would end the process.
with garbage.kept(), suppress(Exception):
    for module in ("simulations.worker", "clients.client_app"):
        importlib.import_module(module)
