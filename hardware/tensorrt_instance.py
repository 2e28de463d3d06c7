"""One instance of an engine: a context, a stream, an event and buffers, which run one request at a time.

What a run does: fill the CPU's side of the inputs, tell the context what changed, then on the stream copy in, run, copy
out, record the event; wait for that; copy the results out. Nothing is read before the wait. Not here: which instance
runs a request, what may be asked of an engine (``tensorrt_session``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from hardware.backend import Interrupt, RawTensor
from hardware.cuda import Cuda, Memory
from hardware.errors import DeviceFault, RunFailed
from hardware.tensorrt import Log
from hardware.tensorrt_buffers import SMALLEST, Place, TensorBuffer
from hardware.tensorrt_context import EngineContext
from hardware.tensorrt_engine import Engine, EngineTensor
from hardware.tensorrt_graphs import Captured, Graphs


class Instance:
    """Used by one thread at a time. With ``integrated`` tensors lie where CPU and GPU both reach them."""

    def __init__(self, cuda: Cuda, engine: Engine, log: Log, *, integrated: bool, cuda_graphs: bool) -> None:
        self._engine = engine
        with ExitStack() as made:
            self.stream = cuda.stream()
            made.callback(self.stream.close)
            self._event = cuda.event()
            made.callback(self._event.close)
            self._activations: Memory | None = None
            if cuda_graphs and not engine.has_shape_inputs:  # a graph would keep the first run's shape values
                self._activations = cuda.device_memory(max(SMALLEST, engine.activation_bytes))
                made.callback(self._activations.close)
            self._plain = EngineContext(engine, log, self._activations)
            made.pop_all()
        self._graphs: Graphs | None = None
        if self._activations is not None:
            self._graphs = Graphs(cuda, lambda: EngineContext(engine, log, self._activations))
        self._buffers = {
            tensor.name: TensorBuffer(cuda, _place(tensor, integrated)) for tensor in engine.inputs + engine.outputs
        }

    def run(
        self, profile: int, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None
    ) -> list[RawTensor]:
        """``inputs`` are checked, in the engine's order. Raises ``InvalidInput`` or ``RunFailed`` and what is below."""
        try:
            return self._run(profile, inputs, outputs, interrupt)
        except DeviceFault:
            raise
        except BaseException as error:
            self._recover(error)
            raise

    def _recover(self, error: BaseException) -> None:
        """Let what was enqueued end, for it uses the buffers; raises the fault if there was one behind ``error``."""
        self._plain.forget()
        try:
            self.stream.synchronize()
        except DeviceFault as fault:
            raise fault from error
        finally:
            if self._graphs is not None:
                self._graphs.forget()

    def _run(
        self, profile: int, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None
    ) -> list[RawTensor]:
        sizes = [self._buffers[tensor.name].fill(tensor.data) for tensor in inputs]
        captured = self._captured(profile, inputs)
        context = self._plain if captured is None else captured.context
        changed = context.prepare(profile, inputs, self._buffers, self.stream)
        if interrupt is not None and interrupt.is_set:
            raise RunFailed("interrupted before it started")
        for tensor, size in zip(inputs, sizes, strict=True):
            self._buffers[tensor.name].upload(size, self.stream)
        if captured is not None and captured.graph is not None and not changed:
            captured.graph.launch(self.stream)
        else:
            context.enqueue(self.stream)
        results = self._collect(context, outputs)
        if captured is not None and (captured.graph is None or changed) and self._graphs is not None:
            self._graphs.capture(captured, self.stream)
        return results

    def _captured(self, profile: int, inputs: Sequence[RawTensor]) -> Captured | None:
        if self._graphs is None or self._plain.has_data_dependent_outputs:
            return None
        return self._graphs.find((profile, tuple(tensor.shape for tensor in inputs)))

    def _collect(self, context: EngineContext, outputs: Sequence[str]) -> list[RawTensor]:
        """Copy out, wait, and make the results the caller's own."""
        found = []
        for output in self._engine.outputs:
            if output.name in outputs:
                shape = context.output_shape(output.name)
                self._buffers[output.name].download(output.nbytes(shape), self.stream)
                found.append((output, shape))
        self._event.record(self.stream)
        self._event.synchronize()
        results = {
            output.name: RawTensor(
                output.name, output.info.datatype, shape, self._buffers[output.name].values(output.nbytes(shape))
            )
            for output, shape in found
        }
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Give everything back; nothing may be running. Safe to call again."""
        if self._graphs is not None:
            self._graphs.forget()
        self._plain.close()
        for buffer in self._buffers.values():
            buffer.close()
        for handle in (self._activations, self._event, self.stream):
            if handle is not None:
                handle.close()


def _place(tensor: EngineTensor, integrated: bool) -> Place:
    if tensor.on_host:
        return Place.HOST
    return Place.MAPPED if integrated else Place.DEVICE
