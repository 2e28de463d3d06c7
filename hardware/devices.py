"""What this box is: platform, board, L4T and JetPack, accelerators.

Decided by the driver stack that is there, not by versions: an Orin on JetPack 7 still has nvgpu's files, a Thor has
NVIDIA's desktop driver, and an L4T that nobody has listed yet is a Jetson all the same. Neither CUDA nor TensorRT is
touched. Not here: readings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hardware.nvml import Nvml
from hardware.sysfs import Fields, Unknown, folders, known, text

Platform = Literal["jetson-orin", "jetson-thor", "nvidia", "cpu"]

JETPACK = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
"""JetPack by L4T release without zeros at its end (NVIDIA's archive pages, as jetson-stats 7.2.2 lists them)."""
_GENERATIONS = {"35": "5", "36": "6", "38": "7", "39": "7"}
_GPU_NODES = {"gpu", "ga10b", "gv11b", "gp10b"}
_GPU_DEVICE = re.compile(r"[0-9a-f]+\.(gpu|ga10b|gv11b|gp10b)|gpu\.\d+")


@dataclass(frozen=True, slots=True)
class Accelerator:
    index: int
    name: str
    kind: Literal["nvgpu", "nvml"]
    """The driver that it answers to."""
    unified_memory: bool


@dataclass(frozen=True, slots=True)
class Box:
    """Facts that stay until the next boot."""

    platform: Platform
    """"jetson-orin" is every Jetson on the nvgpu driver."""
    board: str | None = None
    compatible: tuple[str, ...] = ()
    """The device tree's names of board and chip, the most exact first."""
    l4t: str | None = None
    jetpack: str | None = None
    """Only its generation where the release is not listed."""
    accelerators: tuple[Accelerator, ...] = ()
    unknown: dict[str, str] = field(default_factory=dict)


def detect(root: Path = Path("/"), nvml: Nvml | None = None) -> Box:
    """Look at the stack below ``root``; never fails, what cannot be seen is in ``unknown``."""
    fields = Fields()
    gpu, gpc = nvgpu(root), thor_gpc(root)
    platform: Platform
    if gpc is not None:
        platform, accelerators = "jetson-thor", _jetson(root, gpc, "nvml")
    elif gpu is not None:
        platform, accelerators = "jetson-orin", _jetson(root, gpu, "nvgpu")
    else:
        accelerators = fields.ask("accelerators", lambda: _desktop(root, nvml)) or ()
        platform = "nvidia" if accelerators else "cpu"
    board = fields.ask("board", lambda: _board(root))
    l4t = jetpack = None
    if platform.startswith("jetson"):
        l4t = fields.ask("l4t", lambda: _l4t(text(root / "etc/nv_tegra_release")))
        jetpack = fields.ask("jetpack", lambda: _jetpack(l4t, fields))
    return Box(platform, board, _compatible(root), l4t, jetpack, accelerators, fields.unknown)


def nvgpu(root: Path) -> Path | None:
    """The devfreq folder of a Jetson's GPU under the nvgpu driver.

    The device tree tells which it is; containers hide that, so the driver's event file and the device's name do too.
    """
    for entry in folders(root / "sys/class/devfreq"):
        named = {known(entry / "device/of_node/name"), _uevent(entry / "device/uevent").get("OF_NAME", "")}
        if (named & _GPU_NODES or _GPU_DEVICE.fullmatch(entry.name)) and (entry / "device/load").exists():
            return entry
    return None


def thor_gpc(root: Path) -> Path | None:
    """The devfreq folder of Thor's GPU clock; NVML gives the rest there."""
    folder = root / "sys/class/devfreq/gpu-gpc-0"
    return folder if folder.exists() else None


def _jetson(root: Path, devfreq: Path, kind: Literal["nvgpu", "nvml"]) -> tuple[Accelerator, ...]:
    chip = next((name.partition(",")[2] for name in reversed(_compatible(root)) if name.startswith("nvidia,")), "")
    events = _uevent(devfreq / "device/uevent")
    core = events.get("OF_COMPATIBLE_0", "").partition(",")[2] or chip or "gpu"
    return (Accelerator(0, core, kind, unified_memory=True),)


def _desktop(root: Path, nvml: Nvml | None) -> tuple[Accelerator, ...]:
    """GPUs by NVML, else by what the kernel's driver says of itself."""
    why = Unknown("no NVIDIA driver")
    if nvml is not None:
        try:
            return tuple(Accelerator(n, name, "nvml", unified_memory=False) for n, name in enumerate(nvml.names()))
        except Unknown as unknown:
            why = unknown
    found = folders(root / "proc/driver/nvidia/gpus")
    if not found:
        raise why
    names = [re.search(r"^Model:\s*(.+)$", known(gpu / "information"), re.MULTILINE) for gpu in found]
    return tuple(
        Accelerator(n, name[1] if name else "NVIDIA GPU", "nvml", unified_memory=False) for n, name in enumerate(names)
    )


def _board(root: Path) -> str:
    said = known(root / "proc/device-tree/model") or known(root / "sys/devices/soc0/machine")
    if not said:
        names = [known(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
        said = " ".join(name for name in names if name)
    if not said:
        raise Unknown("neither device tree nor DMI: hidden in a container, or a virtual machine")
    return said


def _compatible(root: Path) -> tuple[str, ...]:
    return tuple(name for name in known(root / "proc/device-tree/compatible").split("\0") if name)


def _l4t(release: str) -> str:
    """ "36.4.7" from "# R36 (release), REVISION: 4.7, ..."."""
    found = re.match(r"#\s*R(\d+)\s*\(\w+\),\s*REVISION:\s*(\d+(?:\.\d+)*)", release)
    if found is None:
        raise Unknown(f"nv_tegra_release: says {release[:40]!r}")
    return f"{found[1]}.{found[2]}"


def _jetpack(l4t: str | None, fields: Fields) -> str:
    if l4t is None:
        raise Unknown(f"L4T is unknown: {fields.unknown['l4t']}")
    release = JETPACK.get(re.sub(r"(\.0)+$", "", l4t))
    if release is None:
        generation = _GENERATIONS.get(l4t.partition(".")[0])
        if generation is None:
            raise Unknown(f"L4T {l4t} is not listed")
        return generation
    return release


def _uevent(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in known(path).splitlines() if "=" in line)
