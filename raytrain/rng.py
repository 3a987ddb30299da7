"""The global random generators of a process, as a value that can be saved and swapped.

Python's `random`, NumPy's legacy global generator and Torch's default generators belong to a
process. What an env group draws must not depend on which process hosts it, so each group has its
own streams, which are swapped in around every `sample()`:

    streams = RngStreams.seeded(seed, group_index)
    with streams.active():      # the process's generators are those of the group
        runner.sample()         # ... and advance here
    state = streams.to_state()  # JSON: base64 strings and numbers, nothing pickled

The JSON state:

    {"python": {"version": 3, "state": base64 of 625 little-endian uint32,
                "gauss": hex float | null},
     "numpy":  {"key": base64 of 624 little-endian uint32, "pos": int, "has_gauss": int,
                "gauss": hex float},
     "torch_cpu": base64 | null, "torch_cuda": [base64, one for each device]}

Torch is used only if it was imported already, or is part of the state: a process that probes an
environment in half a second does not import it for nothing. CUDA's generators are part of the
streams once CUDA is initialised; a device without a state in the streams is seeded from their CPU
state, and never keeps the state of the host process.
"""

from __future__ import annotations

import base64
import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from raytrain.errors import RaytrainError

PythonState: TypeAlias = tuple[Any, ...]
NumpyState: TypeAlias = tuple[str, np.ndarray[Any, Any], int, int, float]


@dataclass(eq=False, repr=False, slots=True)
class RngStreams:
    """One state of each global generator. Mutable: `active()` advances it."""

    __hash__ = None  # type: ignore[assignment]
    _python: PythonState
    _numpy: NumpyState
    _torch_cpu: Any
    _torch_cuda: tuple[Any, ...]
    _active: bool = False

    @classmethod
    def seeded(cls, *entropy: int) -> RngStreams:
        """Streams from non-negative integers, a `SeedSequence` child for each generator."""
        import torch

        python, legacy, for_torch = np.random.SeedSequence(entropy).spawn(3)
        generator = torch.Generator()
        generator.manual_seed(int(for_torch.generate_state(1, np.uint64)[0]))
        words = python.generate_state(8, np.uint32).astype("<u4").tobytes()
        return cls(
            random.Random(int.from_bytes(words, "little")).getstate(),
            _legacy_state(np.random.RandomState(np.random.MT19937(legacy))),
            generator.get_state(),
            (),
        )

    @classmethod
    def capture(cls) -> RngStreams:
        """The current state of the process's generators."""
        torch = sys.modules.get("torch")
        return cls(
            random.getstate(),
            _legacy_state(np.random),
            None if torch is None else torch.get_rng_state(),
            () if torch is None else _cuda_states(torch),
        )

    def install(self) -> None:
        """Make this the state of the process's generators."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        if self._torch_cpu is None:
            return
        import torch

        torch.set_rng_state(self._torch_cpu)
        if torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                if device < len(self._torch_cuda):
                    torch.cuda.set_rng_state(self._torch_cuda[device], device)
                else:
                    torch.cuda.default_generators[device].manual_seed(self._cuda_seed(device))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the body on these streams, keep their new state, and restore the process's own.

        Also after an exception. The generators are global, so no two threads of a process may be
        inside `active()` at once, and one object may not be entered twice.
        """
        if self._active:
            raise RuntimeError(
                "These RNG streams are already active: the inner body would repeat the numbers of "
                "the outer one."
            )
        self._active = True
        try:
            with preserved():
                self.install()
                try:
                    yield
                finally:
                    advanced = RngStreams.capture()
                    self._python, self._numpy = advanced._python, advanced._numpy
                    self._torch_cpu = advanced._torch_cpu
                    self._torch_cuda = advanced._torch_cuda
        finally:
            self._active = False

    def differing(self, other: RngStreams) -> tuple[str, ...]:
        """The generators whose states differ in `other`: of "random", "numpy", "torch"."""
        (_, key, *rest), (_, other_key, *other_rest) = self._numpy, other._numpy
        equal = {
            "random": self._python == other._python,
            "numpy": rest == other_rest and np.array_equal(key, other_key),
            "torch": _torch_bytes(self) == _torch_bytes(other),
        }
        return tuple(name for name, same in equal.items() if not same)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RngStreams) and not self.differing(other)

    def to_state(self) -> dict[str, Any]:
        version, words, gauss = self._python
        _, key, pos, has_gauss, cached = self._numpy
        return {
            "python": {
                "version": version,
                "state": _encode(np.asarray(words, dtype="<u4").tobytes()),
                "gauss": None if gauss is None else float(gauss).hex(),
            },
            "numpy": {
                "key": _encode(np.asarray(key).astype("<u4").tobytes()),
                "pos": int(pos),
                "has_gauss": int(has_gauss),
                "gauss": float(cached).hex(),
            },
            "torch_cpu": None if self._torch_cpu is None else _encode(_bytes(self._torch_cpu)),
            "torch_cuda": [_encode(_bytes(state)) for state in self._torch_cuda],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RngStreams:
        """The streams that `to_state` wrote.

        Raises:
            RaytrainError: a key is missing or its value has another form.
        """
        try:
            python, legacy = state["python"], state["numpy"]
            words = np.frombuffer(base64.b64decode(python["state"]), dtype="<u4")
            key = np.frombuffer(base64.b64decode(legacy["key"]), dtype="<u4").astype(np.uint32)
            if len(words) != 625 or len(key) != 624:
                raise ValueError(f"{len(words)} and {len(key)} words instead of 625 and 624")
            gauss = python["gauss"]
            return cls(
                (python["version"], tuple(words.tolist()), None if gauss is None
                 else float.fromhex(gauss)),
                ("MT19937", key, legacy["pos"], legacy["has_gauss"],
                 float.fromhex(legacy["gauss"])),
                None if state["torch_cpu"] is None else _tensor(state["torch_cpu"]),
                tuple(_tensor(text) for text in state["torch_cuda"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise RaytrainError(
                f"The saved state of the random generators is damaged ({error!r}). Use an older "
                "checkpoint."
            ) from error

    def _cuda_seed(self, device: int) -> int:
        digest = hashlib.sha256(_bytes(self._torch_cpu) + device.to_bytes(4, "little")).digest()
        return int.from_bytes(digest[:8], "little")


def hash_seed(seed: int) -> int:
    """The PYTHONHASHSEED of a run with this seed: 0 to 2**32 - 1, where 0 turns Python's
    randomisation off like any other number. The same for all platforms and versions."""
    digest = hashlib.sha256(f"raytrain's hash order {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def preserved() -> Iterator[None]:
    """Restore the process's generators after the body, whatever it draws from them."""
    own = RngStreams.capture()
    try:
        yield
    finally:
        own.install()


def _legacy_state(source: Any) -> NumpyState:
    state = source.get_state()
    if not isinstance(state, tuple) or state[0] != "MT19937":
        raise RaytrainError(
            "NumPy's global generator was replaced with np.random.set_bit_generator. raytrain "
            "saves and restores only the standard one (MT19937); use your own Generator instead."
        )
    return state


def _cuda_states(torch: Any) -> tuple[Any, ...]:
    if not torch.cuda.is_initialized():
        return ()
    return tuple(torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count()))


def _torch_bytes(streams: RngStreams) -> list[bytes]:
    states = () if streams._torch_cpu is None else (streams._torch_cpu, *streams._torch_cuda)
    return [_bytes(state) for state in states]


def _bytes(state: Any) -> bytes:
    raw: bytes = state.cpu().numpy().tobytes()
    return raw


def _tensor(text: str) -> Any:
    import torch

    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
