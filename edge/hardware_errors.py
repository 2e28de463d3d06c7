"""The one table from errors of devices and runtimes to errors of the mesh. Nothing else."""

from __future__ import annotations

from hardware import errors as hw
from mesh import errors as mesh

TABLE: tuple[tuple[type[hw.HardwareError], type[mesh.MeshError]], ...] = (
    (hw.TensorTooLarge, mesh.PayloadTooLarge),
    (hw.InvalidInput, mesh.InvalidRequest),
    (hw.ModelRefused, mesh.ModelRejected),
    (hw.BackendUnavailable, mesh.ModelRejected),
    (hw.EngineNotBuilt, mesh.ModelRejected),
    (hw.NotLoaded, mesh.ModelNotReady),
    (hw.DeviceOutOfMemory, mesh.Unavailable),
    (hw.DeviceFault, mesh.InstanceLost),
    (hw.RunFailed, mesh.InferenceFailed),
    (hw.WorkerDied, mesh.InstanceLost),
)
"""Most specific class first."""


def translate(error: hw.HardwareError) -> mesh.MeshError:
    for ours, theirs in TABLE:
        if isinstance(error, ours):
            return theirs(error.text)
    return mesh.InferenceFailed(error.text)
