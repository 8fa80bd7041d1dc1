"""Safetensors files, read by rows and written as a stream: neither a model in memory nor files mapped into it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipelines.errors import ExportError

if TYPE_CHECKING:
    import torch

SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes a value, by the format's name of the type."""

TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's names of the types that hold weights."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a file holds a tensor."""

    path: Path
    dtype: str
    """As the format names it: F32, BF16, …"""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return SIZES[self.dtype] * math.prod(self.shape)

    def read(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows from ``first`` up to ``last`` (all of a scalar), as they are stored.

        Raises:
            ExportError: it holds no floating-point numbers, or the file ended.
        """
        import torch

        if self.dtype not in TORCH:
            raise ExportError(f"{self.path} holds numbers of type {self.dtype}; weights are one of: {', '.join(TORCH)}")
        rows = self.shape[0] if self.shape else 1
        last = rows if last is None else min(last, rows)
        width = SIZES[self.dtype] * math.prod(self.shape[1:])
        buffer = self._bytes(first * width, (last - first) * width)
        shape = (last - first, *self.shape[1:]) if self.shape else ()
        if not buffer:
            return torch.zeros(shape, dtype=getattr(torch, TORCH[self.dtype]))
        return torch.frombuffer(buffer, dtype=getattr(torch, TORCH[self.dtype])).view(shape)

    def parts(self, length: int) -> Iterable[bytearray]:
        """All bytes, in parts of at most ``length``."""
        for offset in range(0, self.size, length):
            yield self._bytes(offset, min(length, self.size - offset))

    def _bytes(self, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + offset)
            view, done = memoryview(buffer), 0
            while done < length:
                count = file.readinto(view[done:])
                if not count:
                    raise ExportError(f"{self.path} ends before the tensors that it lists: copy it again")
                done += count
        return buffer


def stored_tensors(folder: Path, name: str = "model") -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, ``<name>.safetensors`` or the files that its index lists, by their names.

    Raises:
        ExportError: there is none (pickles are never read), a file is missing or damaged, or two hold the same tensor.
    """
    index, single = folder / f"{name}.safetensors.index.json", folder / f"{name}.safetensors"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ExportError(f"{index} is no index of safetensors files: {error}") from error
    elif single.is_file():
        files = [single.name]
    else:
        raise ExportError(
            f"{folder} holds neither {single.name} nor {index.name}; other formats can run code when they are read: "
            "save the model as safetensors"
        )
    found: dict[str, StoredTensor] = {}
    for file in files:
        path = folder / file
        if path.parent != folder or not path.is_file():
            raise ExportError(f"{index} lists {file!r}, which is not in {folder}: download the model completely")
        for key, tensor in _header(path).items():
            if key in found:
                raise ExportError(f"{path} and {found[key].path} both hold {key}: remove the one that is not in use")
            found[key] = tensor
    return found


def write_tensors(
    path: Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    data: Callable[[str], Iterable[Any]],
) -> None:
    """Write the tensors of ``layout`` (name to type and shape); ``data`` gives the bytes of each in parts, in turn."""
    names = sorted(layout, key=lambda name: -SIZES[layout[name][0]])  # every tensor lies at a multiple of its type
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        dtype, shape = layout[name]
        size = SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb", buffering=0) as file:
        _write(file, len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for part in data(name):
                _write(file, part)
        if file.tell() != 8 + len(encoded) + offset:
            raise ExportError(f"{path} became {file.tell()} bytes long, {8 + len(encoded) + offset} were announced")


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of ``tensor``, which stays as it is."""
    import torch

    data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def _write(file: BinaryIO | Any, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _header(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header against the file: no overlaps, no gaps, no excess
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path} is no complete safetensors file: {error}") from error
    unknown = sorted({entry["dtype"] for name, entry in entries.items() if name != "__metadata__"} - SIZES.keys())
    if unknown:
        raise ExportError(f"{path} holds types that cannot be merged: {', '.join(unknown)}")
    return {
        name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
        if name != "__metadata__"
    }
