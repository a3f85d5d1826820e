"""Weights, state and hand-overs on a provider's own device while graphs run there.

The runtime's arrays stay where they are. What graphs keep from run to run has a copy on the device, made when it is
first bound and written back by `settle`; everything else is passed in and out with each run. A copy that no graph
writes to goes with the last call that is bound to it, as the array may: blocks that are not in memory pass through the
device one after another too. Copies are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from edgeff.errors import EngineError, one_line
from edgeff.runtime.arrays import Array, Port, fitting

# Weights of rows and rates are shared by many graphs: such small inputs are passed in when they have changed.
_SMALL_BYTES = 4096
# Inputs and outputs that stay on the device, by their role.
_KEPT = ("parameter", "state", "gradient", "buffer", "handover")
# Of these, what counts between two batches. Sums of gradients do not: they are zero then, here and there, or those of a
# batch that was interrupted.
_LASTING = ("parameter", "state", "buffer")


@dataclass(frozen=True)
class Copies:
    """How often tensors were copied between the runtime's memory and the device's."""

    to_device: int = 0
    from_device: int = 0

    def __add__(self, other: Copies) -> Copies:
        return Copies(self.to_device + other.to_device, self.from_device + other.from_device)

    def __sub__(self, other: Copies) -> Copies:
        return Copies(self.to_device - other.to_device, self.from_device - other.from_device)


@dataclass(eq=False)
class DeviceCopy:
    """An array's copy on the device.

    Attributes:
        array: In the runtime's memory, as numbers in a row.
        value: On the device.
        lasts: It counts between two batches.
        seen: Bytes that were uploaded last, of a small array.
    """

    array: Array
    value: Any
    lasts: bool = False
    seen: bytes = b""


@dataclass
class DeviceMemory:
    """What lies on a device.

    Attributes:
        module: onnxruntime.
        device: As onnxruntime names it, such as `cuda`.
        count: Is told of copies.
    """

    module: Any
    device: str
    count: Callable[[Copies], None]
    _placed: WeakValueDictionary[tuple[int, int], DeviceCopy] = field(default_factory=WeakValueDictionary)
    _changed: dict[tuple[int, int], DeviceCopy] = field(default_factory=dict)

    def keeps(self, name: str, array: Array) -> bool:
        """Whether what is bound to a port stays on the device."""
        # `x` does where a block before has handed it over.
        return _role(name) in _KEPT or (name == "x" and _key(array) in self._changed)

    def place(self, array: Array) -> DeviceCopy:
        """An array's copy, which is made if there is none; for as long as somebody holds it.

        Args:
            array: C-contiguous.
        """
        found = self._placed.get(_key(array))
        if found is None:
            flat = array.reshape(-1)
            value = self.module.OrtValue.ortvalue_from_shape_and_type(flat.shape, flat.dtype.type, self.device, 0)
            found = DeviceCopy(flat, value, seen=array.tobytes() if array.nbytes <= _SMALL_BYTES else b"")
            self._placed[_key(array)] = found
            self._upload(found)
        return found

    def place_output(self, name: str, array: Array) -> DeviceCopy:
        """The copy that a graph writes to, for as long as this lives."""
        copy = self._changed[_key(array)] = self.place(array)
        copy.lasts = _role(name) in _LASTING
        return copy

    def refresh(self, copy: DeviceCopy) -> None:
        """Upload a small array, where it is another than was uploaded last."""
        now = copy.array.tobytes()
        if copy.seen != now:
            copy.seen = now
            self._upload(copy)

    def clear(self, arrays: Sequence[Array]) -> None:
        """Fill arrays with zeros, here and on the device."""
        for array in arrays:
            array.fill(0)
            self._upload(self._placed[_key(array)])

    def settle(self) -> None:
        """Write what graphs changed of weights and state into the runtime's arrays."""
        for copy in self._changed.values():
            if copy.lasts:
                self._download(copy)

    def fetch(self, array: Array) -> None:
        """Write what graphs changed of one array into it, whatever it is; nothing where none did."""
        if _key(array) in self._changed:
            self._download(self._changed[_key(array)])

    @property
    def _copies_tensors(self) -> bool:
        # To CUDA, which is built in, `copy_tensors` finds no way (1.31): such values copy themselves.
        return self.device != "cuda" and hasattr(self.module, "copy_tensors")

    def _upload(self, copy: DeviceCopy) -> None:
        self.count(Copies(to_device=1))
        if self._copies_tensors:
            self.module.copy_tensors([self.module.OrtValue.ortvalue_from_numpy(copy.array)], [copy.value])
        else:
            copy.value.update_inplace(copy.array)

    def _download(self, copy: DeviceCopy) -> None:
        self.count(Copies(from_device=1))
        if self._copies_tensors:
            self.module.copy_tensors([copy.value], [self.module.OrtValue.ortvalue_from_numpy(copy.array)])
        else:
            copy.array[...] = copy.value.numpy()


class DeviceCall:
    """A graph bound to what lies on a device and to arrays that are passed in and out.

    Args:
        session: Of onnxruntime.
        name: Of the graph, for messages.
        inputs: Of the graph.
        outputs: Of the graph.
        arrays: By name; see `Graph.bind`.
        memory: Of the device.

    Raises:
        EngineError: An array is missing or does not fit.
    """

    def __init__(
        self,
        session: Any,
        name: str,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        arrays: Mapping[str, Array],
        memory: DeviceMemory,
    ) -> None:
        self._session, self._name, self._memory = session, name, memory
        self._binding = session.io_binding()
        self._small: list[DeviceCopy] = []
        self._kept: list[tuple[str, Array, DeviceCopy]] = []
        self._passed_in: list[tuple[str, Any]] = []
        self._passed_out = 0
        self._held: list[Array] = []
        for port in inputs:
            self._take_input(port, self._array(port, arrays))
        for port in outputs:
            self._bind_output(port, self._array(port, arrays))

    def run(self) -> None:
        """Pass in, run, pass out.

        Raises:
            EngineError: onnxruntime refused.
        """
        try:
            for copy in self._small:
                self._memory.refresh(copy)
            # Bound anew for every run: what a node on the CPU reads is copied there, and what lies here copied to the
            # device, in the moment in which it is bound.
            for name, array, copy in self._kept:
                place = copy.value.data_ptr()
                self._binding.bind_input(name, self._memory.device, 0, array.dtype.type, array.shape, place)
            for name, value in self._passed_in:
                self._binding.bind_ortvalue_input(name, value)
            self._binding.synchronize_inputs()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # onnxruntime raises a dozen classes that share no base of their own
            raise EngineError(f"onnxruntime failed in `{self._name}`: {one_line(error)}") from error
        self._memory.count(Copies(len(self._passed_in), self._passed_out))

    def _array(self, port: Port, arrays: Mapping[str, Array]) -> Array:
        name = port.name if port.name in arrays else port.name.removeprefix("new.")
        array = fitting(self._name, port, name, arrays)
        self._held.append(array)
        return array

    def _take_input(self, port: Port, array: Array) -> None:
        kept = self._memory.keeps(port.name, array)
        # Providers leave integers to the CPU.
        small = not kept and array.nbytes <= _SMALL_BYTES and array.dtype.kind == "f"
        if kept or small:
            copy = self._memory.place(array)
            self._kept.append((port.name, array, copy))
            self._small += [copy] if small else []
        else:
            self._passed_in.append((port.name, self._memory.module.OrtValue.ortvalue_from_numpy(array)))

    def _bind_output(self, port: Port, array: Array) -> None:
        if self._memory.keeps(port.name, array):
            place = self._memory.place_output(port.name, array).value.data_ptr()
            self._binding.bind_output(port.name, self._memory.device, 0, array.dtype.type, array.shape, place)
        else:
            self._passed_out += 1
            value = self._memory.module.OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_output(port.name, value)


def _role(name: str) -> str:
    return name.removeprefix("new.").partition(".")[0]


def _key(array: Array) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes
