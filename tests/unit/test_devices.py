"""What a box is recognised as, on trees of kernel files (``tests.hardware_trees``) and a stand-in for NVML."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hardware.devices import Accelerator, detect
from hardware.fakes.nvml import FakeGpu, FakeNvml, NVMLError_LibraryNotFound
from hardware.nvml import Nvml
from tests.hardware_trees import NOTE, TREES, tree


@pytest.mark.parametrize(
    ("name", "platform", "l4t", "jetpack"),
    [
        ("orin-jp6", "jetson-orin", "36.4.7", "6.2.1"),
        ("orin-jp7", "jetson-orin", "39.2.0", "7.2"),
        ("thor-jp7", "jetson-thor", "38.2.0", "7.0"),
        ("desktop", "nvidia", None, None),
        ("cpu-container", "cpu", None, None),
    ],
)
def test_the_driver_stack_tells_the_platform(
    tmp_path: Path, name: str, platform: str, l4t: str | None, jetpack: str | None
) -> None:
    box = detect(tree(tmp_path, name).root)
    assert (box.platform, box.l4t, box.jetpack) == (platform, l4t, jetpack)


def test_boards_and_accelerators_are_named(tmp_path: Path) -> None:
    orin = detect(tree(tmp_path, "orin-jp6").root)
    assert orin.board == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert orin.compatible[-1] == "nvidia,tegra234"
    assert orin.accelerators == (Accelerator(0, "ga10b", "nvgpu", unified_memory=True),)
    thor = detect(tree(tmp_path, "thor-jp7").root)
    assert thor.accelerators == (Accelerator(0, "tegra264", "nvml", unified_memory=True),)
    desktop = detect(tree(tmp_path, "desktop").root)
    assert desktop.board == "Example Tower 9"
    assert desktop.accelerators == (Accelerator(0, "NVIDIA GeForce RTX 3060", "nvml", unified_memory=False),)


def test_a_jetson_in_a_container_that_hides_the_device_tree_is_one_all_the_same(tmp_path: Path) -> None:
    orin = tree(tmp_path, "orin-jp6")
    shutil.rmtree(orin.root / "sys/firmware")
    (orin.root / "etc/nv_tegra_release").unlink()
    box = detect(orin.root)
    assert (box.platform, box.accelerators[0].name) == ("jetson-orin", "ga10b")
    assert (box.board, box.l4t, box.jetpack) == (None, None, None)
    assert box.unknown == {
        "board": "neither device tree nor DMI: hidden in a container, or a virtual machine",
        "l4t": "nv_tegra_release: there is none",
        "jetpack": "L4T is unknown: nv_tegra_release: there is none",
    }
    (orin.root / "sys/class/devfreq/17000000.gpu/device/uevent").unlink()
    assert detect(orin.root).platform == "jetson-orin"


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("R36 (release), REVISION: 3.0", "36.3.0", "6.0"),
        ("R36 (release), REVISION: 4.0", "36.4.0", "6.1"),
        ("R36 (release), REVISION: 9.1", "36.9.1", "6"),
        ("R41 (release), REVISION: 1.0", "41.1.0", None),
        ("garbage", None, None),
    ],
)
def test_an_unlisted_release_is_never_refused(
    tmp_path: Path, release: str, l4t: str | None, jetpack: str | None
) -> None:
    orin = tree(tmp_path, "orin-jp6")
    orin.write("etc/nv_tegra_release", f"# {release}, GCID: 1")
    box = detect(orin.root)
    assert (box.platform, box.l4t, box.jetpack) == ("jetson-orin", l4t, jetpack)
    assert ("jetpack" in box.unknown) == (jetpack is None)


def test_a_load_that_is_not_a_gpus_makes_no_jetson(tmp_path: Path) -> None:
    desktop = tree(tmp_path, "desktop")
    desktop.write("sys/class/devfreq/17000010.nvdec/device/load", 0)
    desktop.write("sys/class/devfreq/17000010.nvdec/device/uevent", "OF_NAME=nvdec")
    assert detect(desktop.root).platform == "nvidia"


def test_nvml_names_the_gpus_where_it_answers(tmp_path: Path) -> None:
    desktop = tree(tmp_path, "desktop").root
    two = detect(desktop, Nvml(FakeNvml(FakeGpu("A"), FakeGpu("B"))))
    assert [(a.index, a.name) for a in two.accelerators] == [(0, "A"), (1, "B")]
    without = detect(desktop, Nvml(FakeNvml(init_error=NVMLError_LibraryNotFound)))
    assert [a.name for a in without.accelerators] == ["NVIDIA GeForce RTX 3060"]
    bare = detect(tree(tmp_path, "cpu-container").root, Nvml(FakeNvml(init_error=NVMLError_LibraryNotFound)))
    assert (bare.platform, bare.unknown["accelerators"]) == ("cpu", "NVML: NVML Shared Library Not Found")


@pytest.mark.parametrize("name", TREES)
def test_the_trees_say_that_they_are_reconstructed(tmp_path: Path, name: str) -> None:
    assert (tree(tmp_path, name).root / "README").read_text() == NOTE


def test_this_box_is_something(tmp_path: Path) -> None:
    assert detect().platform in ("jetson-orin", "jetson-thor", "nvidia", "cpu")
    nothing = detect(tmp_path)
    assert (nothing.platform, nothing.accelerators) == ("cpu", ())
