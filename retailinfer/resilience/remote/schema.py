"""What a server says of its model against what will be sent and expected: names, types, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from retailinfer.errors import SchemaMismatchError, clip
from retailinfer.resilience.remote.tensors import Metadata, TensorSpec, datatype_of

__all__ = ["Tensors", "compared"]

Tensors: TypeAlias = Mapping[str, tuple[Any, Sequence[int | None]]]  # name -> dtype, shape


def compared(where: str, found: Metadata, inputs: Tensors, outputs: Tensors) -> dict[str, TensorSpec]:
    """The declared outputs by name, all of which fit. where: the model, for messages. Raises: SchemaMismatchError."""
    theirs_in = {spec.name: spec for spec in found.inputs}
    theirs_out = {spec.name: spec for spec in found.outputs}
    if theirs_in.keys() != inputs.keys():
        raise SchemaMismatchError(
            f"the model {where} declares the inputs {clip(sorted(theirs_in), 120)}, "
            f"the release has {clip(sorted(inputs), 120)}"
        )
    for ours, theirs in ((inputs, theirs_in), (outputs, theirs_out)):
        for name, (dtype, shape) in ours.items():
            try:
                known = np.dtype(dtype)
            except TypeError:
                raise SchemaMismatchError(
                    f"Expected numbers as `{name}`, which a model server can be sent, got {clip(dtype)}"
                ) from None
            _compare(where, name, known, tuple(shape), theirs.get(name))
    return {name: theirs_out[name] for name in outputs}


def _compare(
    where: str, name: str, dtype: np.dtype[Any], shape: tuple[int | None, ...], theirs: TensorSpec | None
) -> None:
    want = f"{datatype_of(dtype)} of shape {[-1 if one is None else one for one in shape]}"
    if theirs is None:
        raise SchemaMismatchError(
            f"Expected {want} as `{name}` of the model {where}, which does not declare it"
        )
    fits = len(theirs.shape) == len(shape) and all(
        ours in (None, -1) or one in (-1, ours) for ours, one in zip(shape, theirs.shape, strict=True)
    )
    if theirs.datatype != datatype_of(dtype) or not fits:
        raise SchemaMismatchError(
            f"Expected {want} as `{name}` of the model {where}, got {clip(theirs.datatype)} of shape "
            f"{clip(list(theirs.shape))}"
        )
