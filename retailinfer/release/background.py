"""background.msgpack: what a row looks like that says nothing of itself, for models whose inside gives no reasons.

Rules:
  * One row of every tensor that the models read, as the feature program would write it: the mean or the most frequent value
    of real rows, column by column. A field's contribution is what the score loses when the field's cells become these.
  * Plain MessagePack, decoded strictly; sizes are checked before anything points into the bytes. No pickle.
Who makes it: `authoring.background`. Who reads it: `explain`.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from retailinfer.errors import ManifestError, SchemaMismatchError, clip
from retailinfer.release.golden import GoldenArray, array_of, array_problem, array_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Background", "background_of", "decode_background", "encode_background"]


class Background(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One row, tensor by tensor.

    Attributes:
        n_rows: how many rows it was made of.
        tensors: tensor of the feature spec -> its row, shape (cells,), in its dtype.
        masks: the same of tensors with a mask, in the mask's dtype.
    """

    n_rows: Annotated[int, Meta(ge=1, le=1 << 53)]
    tensors: dict[str, GoldenArray]
    masks: dict[str, GoldenArray] = {}

    def tensor(self, name: str) -> "NDArray[Any] | None":
        """The row of a tensor; None where there is none."""
        return array_values(self.tensors[name]) if name in self.tensors else None

    def mask(self, name: str) -> "NDArray[Any] | None":
        """The row of a tensor's mask."""
        return array_values(self.masks[name]) if name in self.masks else None

    def rows(
        self, tensors: Iterable[tuple[str, int, int, bool, str | None, int]], dtypes: Mapping[int, Any]
    ) -> "tuple[list[NDArray[Any]], list[NDArray[Any] | None]]":
        """The rows of all tensors and of their masks, None where a tensor has none.

        Args:
            tensors: of the feature program. dtypes: by their numbers; those that are not there are texts.
        Raises: SchemaMismatchError for the background of other features.
        """
        found: list[NDArray[Any]] = []
        masks: list[NDArray[Any] | None] = []
        for name, dtype, cells, _, mask_name, mask_dtype in tensors:
            found.append(_checked(name, self.tensor(name), cells, dtypes.get(dtype, object)))
            masks.append(
                None
                if mask_name is None
                else _checked(mask_name, self.mask(name), cells, dtypes.get(mask_dtype, object))
            )
        return found, masks


def _checked(name: str, row: "NDArray[Any] | None", cells: int, dtype: Any) -> "NDArray[Any]":
    wanted = np.dtype(dtype)
    if row is None or row.shape != (cells,) or row.dtype.newbyteorder("=") != wanted:
        raise SchemaMismatchError(
            f"background.msgpack has no row of {cells} cells of {wanted.name} for `{name}`",
            hint="it and features.json are of two releases; pack again",
        )
    return row.astype(wanted, copy=False)


def background_of(
    n_rows: int, tensors: "Mapping[str, NDArray[Any]]", masks: "Mapping[str, NDArray[Any]]"
) -> Background:
    """Out of rows, shape (cells,) each."""
    return Background(
        n_rows=n_rows,
        tensors={name: array_of(row) for name, row in tensors.items()},
        masks={name: array_of(row) for name, row in masks.items()},
    )


def encode_background(background: Background) -> bytes:
    """MessagePack of a background; equal ones give equal bytes."""
    return msgspec.msgpack.encode(background, order="deterministic")


def decode_background(data: bytes) -> Background:
    """The inverse of `encode_background`. Raises: ManifestError for anything that it does not write."""
    try:
        background = msgspec.msgpack.decode(data, type=Background)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ManifestError(
            f"background.msgpack holds no background: {clip(str(exc), 200)}", hint="pack the release again"
        ) from exc
    for name, one in (*background.tensors.items(), *background.masks.items()):
        problem = "is no row of cells" if len(one.shape) != 1 else array_problem(one)
        if problem is not None:
            raise ManifestError(
                f"background.msgpack contradicts itself: {clip(name)} {problem}",
                hint="pack the release again",
            )
    return background
