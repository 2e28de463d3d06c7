"""What is installed on this box and whether it fits together: driver, CUDA, TensorRT, ONNX Runtime, Python, readings.

Each library is looked at in a throw-away process, because a broken one ends the process that imports it. Not here:
whether anything works, which is what running it shows.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import platform
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hardware.acceptance.finding import CheckFailed, Found, Skipped
from hardware.confinement import environment
from hardware.gauges import Gauges
from hardware.nvml import Nvml

LOOK_S = 120.0
"""A first import on a slow disk takes tens of seconds."""
LOOKS = ("onnxruntime", "tensorrt", "cuda")
_DRIVER = re.compile(r"Kernel Module\D*?(\d+\.[\d.]+)")
_PROC_DRIVER = Path("/proc/driver/nvidia/version")

Versions = dict[str, Any]


async def look() -> Versions:
    """Everything known, by what was looked at; a library that cannot be used has ``error``."""
    looked = await asyncio.gather(*map(_look, LOOKS))
    found: Versions = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    found |= {"kernel": platform.release(), "inference_mesh": _version("inference-mesh"), "driver": _driver()}
    return found | dict(zip(LOOKS, looked, strict=True))


async def _look(what: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hardware.acceptance.look", what,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )  # fmt: skip
    talking = asyncio.ensure_future(process.communicate())
    try:
        await asyncio.wait({talking}, timeout=LOOK_S)
        if not talking.done():
            return {"error": "hangs when it is imported"}
        out, err = talking.result()
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait({talking})
    try:
        looked: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        last = (err.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"ends the process that imports it, status {process.returncode}: {last[:200]}"}
    return looked


async def box() -> dict[str, Any]:
    """What the detector says, and two readings a moment apart: shares and energy need both."""

    def read() -> dict[str, Any]:
        gauges = Gauges(nvml=Nvml())
        gauges.read()
        time.sleep(0.5)
        readings = asdict(gauges.read())
        return {**asdict(gauges.box), "readings": readings}

    return await asyncio.to_thread(read)


def python(versions: Versions) -> Found:
    said = f"Python {versions['python']} on {versions['system']} {versions['kernel']} ({versions['machine']})"
    return Found(f"inference-mesh {versions['inference_mesh']}, {said}")


def onnxruntime(versions: Versions) -> Found:
    """Two packages install the same module over each other; the loser's providers vanish without a word."""
    looked = versions["onnxruntime"]
    packages = looked.get("packages", [])
    if len(packages) > 1:
        text = f"{' and '.join(packages)} are installed over each other"
        raise CheckFailed(text, looked, f"uninstall both ({' '.join(packages)}), then install one")
    if "error" in looked:
        raise CheckFailed(looked["error"], looked, "install 'inference-mesh[cpu]' or 'inference-mesh[cuda]'")
    text = f"{packages[0] if packages else 'onnxruntime'} {looked['version']}: {', '.join(looked['providers'])}"
    wanted = looked["links_tensorrt"]
    return Found(text + (f"; links TensorRT {wanted}" if wanted is not None else ""), looked)


def tensorrt(versions: Versions) -> Found:
    """Two TensorRTs on a box are the usual reason for plans that do not load (NVIDIA/TensorRT#2072)."""
    looked = versions["tensorrt"]
    if "error" in looked:
        raise Skipped(looked["error"])
    text = f"{looked['module']} {looked['version']}"
    bindings, library = _release(looked["version"]), looked["library"]
    if library is not None and bindings != library:
        advice = "two TensorRTs are installed: remove one, for its plans do not load in the other"
        raise CheckFailed(f"{text}, but its library is {'.'.join(map(str, library))}", looked, advice)
    return Found(text if library is not None else f"{text}; the library's own version cannot be seen", looked)


def cuda(versions: Versions) -> Found:
    looked, driver = versions["cuda"], versions["driver"]
    if "error" in looked:
        raise Skipped(looked["error"])
    text = f"{looked['name']}, compute capability {looked['compute_capability']}, CUDA runtime {looked['runtime']}"
    return Found(f"{text}, driver {driver or 'unknown'} for CUDA up to {looked['driver_cuda']}", looked)


def readings(box: dict[str, Any]) -> Found:
    """Which readings there are, and why the others are unknown."""
    known = [name for name, value in box["readings"].items() if value is not None and name not in ("at_s", "unknown")]
    unknown = {f"box.{name}": why for name, why in {**box["unknown"], **box["readings"]["unknown"]}.items()}
    for number, device in enumerate(box["readings"]["devices"]):
        unknown |= {f"device{number}.{name}": why for name, why in device["unknown"].items()}
    parts = [box["platform"], box["board"]]
    parts += [f"{title} {box[name]}" for title, name in (("L4T", "l4t"), ("JetPack", "jetpack")) if box[name]]
    gpus = ", ".join(a["name"] for a in box["accelerators"]) or "no GPU"
    text = f"{', '.join(filter(None, parts))}; {gpus}; {len(known)} kinds of readings, {len(unknown)} unknown"
    return Found(text, {"unknown": unknown})


def _release(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _driver() -> str | None:
    """Version of NVIDIA's kernel module; None where there is none, as on a Jetson with nvgpu."""
    try:
        found = _DRIVER.search(_PROC_DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
