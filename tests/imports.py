"""``python -m tests.imports``: import every module of the product, each as if it were the first; which fail, and why?

Needs nothing but the product and its own dependencies: so ``make oldest`` asks the oldest Python that is promised. Not
here: rules about what may import what (``pyproject.toml``, ``tests.test_house``).
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mesh", "edge", "cloud", "hardware")


def names() -> list[str]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in found if not name.endswith("__main__")]


def failures() -> dict[str, str]:
    """Why a module cannot be imported alone: import cycles show here. It leaves none of them imported."""
    failed = {}
    for name in names():
        for loaded in [module for module in sys.modules if module.partition(".")[0] in PACKAGES]:
            del sys.modules[loaded]
        try:
            importlib.import_module(name)
        except Exception:
            failed[name] = traceback.format_exc(limit=-1)
    return failed


def main() -> int:
    failed = failures()
    for name, why in failed.items():
        print(name, why, sep="\n")
    print(f"{sys.version.split()[0]}: {len(names()) - len(failed)} of {len(names())} modules can be imported")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
