"""Trees of kernel files as boards show them: **reconstructed from documentation, not recorded** on a device.

Every tree carries a README that says so. Not here: what the readers make of them (``tests/unit``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

NOTE = "reconstructed from documentation, not recorded\n"
GIB_KB = 1024**2


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("README", NOTE)

    def write(self, path: str, content: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = str(content)
        file.write_text(text if text.endswith(("\n", "\0")) else f"{text}\n")

    def link(self, path: str, target: str) -> None:
        """``target`` is a path from the root."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(self.root / target)

    def host(self, *, cores: int, total_kb: int, available_kb: int) -> None:
        """/proc of a machine that ran for a while."""
        self.write("proc/self/cgroup", "0::/\n")
        self.write("proc/self/status", f"Name:\tmesh-edge\nCpus_allowed_list:\t0-{cores - 1}\n")
        self.write("proc/meminfo", f"MemTotal: {total_kb} kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n")
        self.write("proc/pressure/memory", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 total=9\n")
        self.ticks([(1000, 9000)] * cores)

    def ticks(self, cores: list[tuple[int, int]]) -> None:
        """(busy, idle) ticks of each processor since boot; the kernel names guest time twice."""
        lines = [f"cpu{n} {busy - 10} 0 10 {idle} 0 0 0 0 5 0" for n, (busy, idle) in enumerate(cores)]
        busy, idle = sum(b for b, _ in cores), sum(i for _, i in cores)
        self.write("proc/stat", "\n".join([f"cpu  {busy} 0 0 {idle} 0 0 0 0 5 0", *lines, "ctxt 1"]))

    def zone(self, number: int, kind: str, temp: int, trips: dict[str, int] | None = None) -> None:
        folder = f"sys/class/thermal/thermal_zone{number}"
        self.write(f"{folder}/type", kind)
        self.write(f"{folder}/temp", temp)
        for n, (what, at) in enumerate((trips or {}).items()):
            self.write(f"{folder}/trip_point_{n}_type", what)
            self.write(f"{folder}/trip_point_{n}_temp", at)

    def cooling(self, number: int, kind: str, state: int = 0) -> None:
        self.write(f"sys/class/thermal/cooling_device{number}/type", kind)
        self.write(f"sys/class/thermal/cooling_device{number}/cur_state", state)

    def ina3221(self, hwmon: int, rails: dict[int, tuple[str, int, int]]) -> None:
        """Channel -> (label, mV, mA); 7 is the driver's sum of shunt voltages."""
        chip = f"sys/class/hwmon/hwmon{hwmon}"
        self.write(f"{chip}/name", "ina3221")
        for channel, (label, millivolt, milliampere) in rails.items():
            self.write(f"{chip}/in{channel}_label", label)
            self.write(f"{chip}/in{channel}_enable", 1)
            self.write(f"{chip}/in{channel}_input", millivolt)
            self.write(f"{chip}/curr{channel}_input", milliampere)
        self.write(f"{chip}/in7_label", "sum of shunt voltages")
        self.write(f"{chip}/in7_input", 5)

    def over_current(self, hwmon: int, counts: tuple[int, int, int]) -> None:
        chip = f"sys/class/hwmon/hwmon{hwmon}"
        self.write(f"{chip}/name", "soctherm_oc")
        for n, count in enumerate(counts, 1):
            self.write(f"{chip}/oc{n}_event_cnt", count)
            self.write(f"{chip}/oc{n}_throt_en", 1)

    def board(self, model: str, *compatible: str, release: str) -> None:
        base = "sys/firmware/devicetree/base"
        self.write(f"{base}/model", f"{model}\0")
        self.write(f"{base}/compatible", "".join(f"{name}\0" for name in compatible))
        self.link("proc/device-tree", base)
        self.write("etc/nv_tegra_release", f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Thu Jan 1")

    def nvgpu(self, platform: str) -> None:
        """The GPU of an Orin: devfreq leads to the device, the device to its node in the device tree."""
        device = f"sys/devices/{platform}/17000000.gpu"
        self.write(f"{device}/load", 425)
        self.write(f"{device}/uevent", "OF_NAME=gpu\nOF_COMPATIBLE_0=nvidia,ga10b\n")
        self.write("sys/firmware/devicetree/base/bus/gpu/name", "gpu\0")
        self.link(f"{device}/of_node", "sys/firmware/devicetree/base/bus/gpu")
        self.clock(f"{device}/devfreq/17000000.gpu", 612_000_000, 306_000_000, 918_000_000)
        self.link(f"{device}/devfreq/17000000.gpu/device", device)
        self.link("sys/class/devfreq/17000000.gpu", f"{device}/devfreq/17000000.gpu")

    def clock(self, folder: str, cur: int, lowest: int, highest: int) -> None:
        for name, hertz in (("cur_freq", cur), ("min_freq", lowest), ("max_freq", highest)):
            self.write(f"{folder}/{name}", hertz)

    def power_modes(self, mode: int) -> None:
        self.write("var/lib/nvpmodel/status", f"pmode:{mode:04d}")
        self.write("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n")


def _orin(tree: Tree) -> None:
    """What an Orin NX shows on any JetPack."""
    tree.host(cores=6, total_kb=15 * GIB_KB, available_kb=11 * GIB_KB)
    trips = {"critical": 104500, "hot": 70000, "passive": 99000}
    tree.zone(0, "cpu-thermal", 51250, trips)
    tree.zone(1, "gpu-thermal", 48500, trips)
    tree.zone(2, "cv0-thermal", -256000, trips)
    tree.zone(8, "tj-thermal", 51500, trips)
    tree.cooling(0, "pwm-fan", 2)
    tree.cooling(1, "cpu-throttle-alert")
    tree.cooling(2, "gpu-throttle-alert")
    tree.cooling(10, "devfreq-17000000.gpu")
    tree.ina3221(1, {1: ("VDD_IN", 5000, 2400), 2: ("VDD_CPU_GPU_CV", 5000, 800), 3: ("VDD_SOC", 5000, 500)})
    tree.over_current(2, (0, 3, 40))
    tree.power_modes(2)


def orin_jp6(tree: Tree) -> None:
    _orin(tree)
    model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    tree.board(model, "nvidia,p3768-0000+p3767-0000", "nvidia,tegra234", release="R36 (release), REVISION: 4.7")
    tree.nvgpu("platform")


def orin_jp7(tree: Tree) -> None:
    _orin(tree)
    model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    tree.board(model, "nvidia,p3768-0000+p3767-0000", "nvidia,tegra234", release="R39 (release), REVISION: 2.0")
    tree.nvgpu("platform/bus@0")


def thor_jp7(tree: Tree) -> None:
    """Thor has NVIDIA's desktop driver: no load file, clocks by devfreq, an INA238 at the input."""
    tree.host(cores=14, total_kb=122 * GIB_KB, available_kb=100 * GIB_KB)
    model = "NVIDIA Jetson AGX Thor Developer Kit"
    tree.board(model, "nvidia,p4071-0000+p3834-0008", "nvidia,tegra264", release="R38 (release), REVISION: 2.0")
    tree.clock("sys/class/devfreq/gpu-gpc-0", 1_386_000_000, 306_000_000, 1_575_000_000)
    tree.clock("sys/class/devfreq/gpu-nvd-0", 1_000_000_000, 306_000_000, 1_000_000_000)
    tree.zone(0, "cpu-thermal", 44000)
    tree.zone(1, "gpu-thermal", 45000, {"passive": 95000})
    tree.zone(2, "tj-thermal", 46000)
    tree.ina3221(0, {1: ("VDD_GPU", 10000, 2000), 2: ("VDD_CPU_SOC_MSS", 10000, 1500), 3: ("VIN_SYS_5V0", 5000, 900)})
    tree.write("sys/class/hwmon/hwmon1/name", "ina238")
    tree.write("sys/class/hwmon/hwmon1/power1_input", 52_500_000)
    tree.over_current(2, (0, 0, 7))


def desktop(tree: Tree) -> None:
    """A workstation with one NVIDIA GPU, as the kernel's driver lists it."""
    tree.host(cores=8, total_kb=64 * GIB_KB, available_kb=40 * GIB_KB)
    tree.write("sys/class/dmi/id/sys_vendor", "Example")
    tree.write("sys/class/dmi/id/product_name", "Tower 9")
    tree.write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ: 1")
    chip = "sys/class/hwmon/hwmon0"
    tree.write(f"{chip}/name", "coretemp")
    for n, temperature in enumerate((55000, 61000, 58000), 1):
        tree.write(f"{chip}/temp{n}_input", temperature)
        tree.write(f"{chip}/temp{n}_max", 100000)
    tree.zone(0, "acpitz", 27800, {"passive": 0})
    tree.zone(1, "x86_pkg_temp", 61000, {"passive": 0})
    tree.cooling(0, "Processor")


def cpu_container(tree: Tree) -> None:
    """A container on the desktop: device tree and DMI hidden, 512 MiB and one and a half processors."""
    tree.host(cores=8, total_kb=64 * GIB_KB, available_kb=40 * GIB_KB)
    group = "sys/fs/cgroup"
    tree.write(f"{group}/memory.max", 512 * 1024**2)
    tree.write(f"{group}/memory.current", 300 * 1024**2)
    tree.write(f"{group}/memory.stat", f"anon 1\ninactive_file {100 * 1024**2}")
    tree.write(f"{group}/memory.pressure", "some avg10=12.25 avg60=0.00 total=9")
    tree.write(f"{group}/cpu.max", "150000 100000")
    tree.write(f"{group}/cpu.stat", "usage_usec 5000000\nuser_usec 1")


TREES: dict[str, Callable[[Tree], None]] = {
    "orin-jp6": orin_jp6,
    "orin-jp7": orin_jp7,
    "thor-jp7": thor_jp7,
    "desktop": desktop,
    "cpu-container": cpu_container,
}


def tree(root: Path, name: str) -> Tree:
    """Build the named tree below ``root``."""
    built = Tree(root / name)
    TREES[name](built)
    return built
