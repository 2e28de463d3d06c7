"""``mesh doctor``: what is wrong with this installation and this box, and what to do about it.

Each check is a function that returns one finding; none changes anything. ONNX Runtime and TensorRT are looked at from
outside, in a process of its own each: a broken one must not take the doctor down.
"""

from __future__ import annotations

import importlib.metadata
import json as jsonlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.markup import escape

from mesh.cli import acceptance as accepted
from mesh.cli.door import Url, get, url_or_default
from mesh.command import FAILED, Json, console, fail, print_json
from mesh.errors import ConfigError, MeshError
from mesh.nats_server import find_binary
from mesh.node_id import default_state_dir

State = Literal["ok", "warning", "failed"]
PROBE_S = 60.0

_LOOK_AT_ORT = """
import json, os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
print(json.dumps([onnxruntime.__version__, onnxruntime.get_available_providers()]))
"""


_LOOK = "hardware.acceptance.look"
"""Looks at one library in a process of its own, which may die of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: State
    found: str
    advice: str = ""


def python() -> Finding:
    found = f"Python {sys.version.split()[0]} on {sys.platform}"
    return Finding("python", "ok", found)


def onnxruntime_packages() -> Finding:
    """Two packages install the same module over each other; the loser's providers vanish without a word."""
    installed = sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", [])))
    if not installed:
        advice = "install 'inference-mesh[cpu]' or 'inference-mesh[cuda]'; an agent cannot load models without it"
        return Finding("onnxruntime", "failed", "not installed", advice)
    if len(installed) > 1:
        found = f"{' and '.join(installed)} are installed over each other"
        return Finding("onnxruntime", "failed", found, f"uninstall both ({' '.join(installed)}), then install one")
    return _look_at_ort(installed[0])


def _look_at_ort(package: str) -> Finding:
    try:
        ran = subprocess.run(  # noqa: S603 - our own interpreter and text
            [sys.executable, "-c", _LOOK_AT_ORT], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
        version, providers = jsonlib.loads(ran.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Finding("onnxruntime", "failed", f"{package} hangs when imported", "reinstall it")
    except (ValueError, IndexError):
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Finding("onnxruntime", "failed", f"{package} cannot be imported: {last}", "reinstall it")
    return Finding("onnxruntime", "ok", f"{package} {version}: {', '.join(providers)}")


def tensorrt() -> Finding:
    """The provider of ONNX Runtime links one major version of TensorRT, and falls to CUDA where there is another."""
    found = _look_at("tensorrt")
    if "version" not in found:
        absent = "is not installed" in found["error"]
        return Finding("tensorrt", "ok", "not installed") if absent else Finding("tensorrt", "warning", found["error"])
    installed = f"{found['module']} {found['version']}"
    links = None if found["module"] == "tensorrt-rtx" else _look_at("onnxruntime").get("links_tensorrt")
    if links is None or found["version"].split(".")[0] == str(links):
        return Finding("tensorrt", "ok", installed)
    advice = (
        f"the backend onnxruntime-tensorrt needs TensorRT {links} (libnvinfer.so.{links}): on a PC "
        f"'pip install \"tensorrt-cu13<{links + 1}\"', or use the backend tensorrt, which takes either"
    )
    return Finding("tensorrt", "warning", f"{installed}, but this onnxruntime links TensorRT {links}", advice)


def _look_at(library: str) -> dict[str, Any]:
    """What is known of it, or ``error``."""
    try:
        ran = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", _LOOK, library], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
        looked: dict[str, Any] = jsonlib.loads(ran.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"{library} hangs when it is imported"}
    except (ValueError, IndexError):
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"{library} ends the process that imports it: {last}"}
    return looked


def nats_server() -> Finding:
    try:
        binary = find_binary()
    except ConfigError as error:
        return Finding("nats-server", "warning", "not found", f"only for 'mesh up' and the demo: {error.text}")
    ran = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=PROBE_S, check=False)  # noqa: S603
    return Finding("nats-server", "ok", ran.stdout.strip().removeprefix("nats-server: "))


def state_dir() -> Finding:
    folder = Path(os.environ.get("MESH_NODE__STATE_DIR") or default_state_dir(os.environ))
    there = folder if folder.exists() else next((p for p in folder.parents if p.exists()), Path("/"))
    if os.access(there, os.W_OK | os.X_OK):
        return Finding("state", "ok", str(folder))
    advice = "set node.state_dir, or make it writable: without it the node gets a new identity at every start"
    return Finding("state", "warning", f"{folder} cannot be written", advice)


def shared_memory() -> Finding:
    """Workers get tensors through sealed anonymous memory (DESIGN D6)."""
    if not hasattr(os, "memfd_create"):
        return Finding("shared memory", "failed", "no memfd_create", "Linux is needed for worker processes")
    try:
        os.close(os.memfd_create("mesh-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        advice = 'allow memfd_create in the container\'s seccomp profile, or set models.isolation = "none"'
        return Finding("shared memory", "failed", error.strerror or str(error), advice)
    return Finding("shared memory", "ok", "memfd_create with seals")


def multicast() -> Finding:
    """Zeroconf needs to join 224.0.0.251 on some interface."""
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        except OSError as error:
            advice = "zeroconf finds nothing here: name neighbours with discovery.seeds"
            return Finding("multicast", "warning", error.strerror or str(error), advice)
    return Finding("multicast", "ok", "224.0.0.251 can be joined")


def hardware() -> Finding:
    """What the box is, and which of its readings are unknown and why."""
    from mesh.cli.doctor_hardware import look

    return Finding("hardware", *look())


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    onnxruntime_packages,
    tensorrt,
    nats_server,
    hardware,
    shared_memory,
    state_dir,
    multicast,
)


def door(url: str) -> Finding:
    """The asked door, and whether models of the mesh are in trouble. Nobody listening is fine unless one was named."""
    asked = url_or_default(url)
    try:
        document = get(url, "/mesh/v1/nodes")
    except MeshError as error:
        named = bool(url or os.environ.get("MESH_URL"))
        return Finding("door", "failed" if named else "warning", error.text)
    rows = document["nodes"]
    bad = [f"{m['name']} on {n['node']}: {m['reason']}" for n in rows for m in n["models"] if m["reason"]]
    departed = [n["node"] for n in rows if n["state"] in ("lost", "suspect")]
    found = f"{asked} sees {len(rows)} {'node' if len(rows) == 1 else 'nodes'}"
    if bad or departed:
        return Finding("door", "warning", found, "; ".join([*bad, *(f"node {n} does not answer" for n in departed)]))
    return Finding("door", "ok", found)


def doctor(
    acceptance: Annotated[bool, typer.Option("--acceptance", help="Try all backends of this box, for minutes")] = False,
    models: Annotated[Optional[Path], typer.Option(help="Models to run beside the made ones; default ./models")] = None,  # noqa: UP045
    seconds: Annotated[float, typer.Option(help="Steady load of each backend; less is less thorough")] = 60.0,
    backend: Annotated[list[str], typer.Option(help="Only this backend, beside the CPU; may be repeated")] = [],  # noqa: B006 - typer's way to take an option many times
    url: Url = "",
    json: Json = False,
) -> None:
    """Check this installation, this box and the door; exit 1 if something failed."""
    if acceptance:
        with fail():
            accepted.acceptance(models, seconds, backend, as_json=json)
        return
    findings = [*(check() for check in CHECKS), door(url)]
    if json:
        ok = all(f.state != "failed" for f in findings)
        print_json({"ok": ok, "checks": [asdict(f) for f in findings]})
    else:
        colours = {"ok": "green", "warning": "yellow", "failed": "red"}
        for f in findings:
            console().print(f"[{colours[f.state]}]{f.state:8}[/] {f.check}: {escape(f.found)}", highlight=False)
            if f.advice:
                console().print(f"         {escape(f.advice)}", highlight=False)
    if any(f.state == "failed" for f in findings):
        raise SystemExit(FAILED)
