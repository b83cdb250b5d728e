"""The wheel's build hook: native kernels go into it where a C++ compiler is found.

Without one the wheel is pure Python and trains on torch; a build never fails because of them.
"""

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "fedsparse/kernels"


class KernelsHook(BuildHookInterface):
    """Compile the kernels in place and say for which platform the wheel is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the wheel; an editable install finds it where it was compiled."""
        library = self._compile(Path(self.root) / KERNELS)
        if library is None or version == "editable":
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(f"/{KERNELS}/{library.name}")

    def _compile(self, folder: Path) -> Path | None:
        spec = importlib.util.spec_from_file_location("fedsparse_build", folder / "build.py")
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.build(folder)
        except Exception as error:  # whatever a strange machine does, the install goes on
            self.app.display_warning(f"fedsparse: native training is left out: {error!r}")
            return None
