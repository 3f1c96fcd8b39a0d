"""What the rows of tables stand for, as tensors of a checkpoint.

So a model can be started from a checkpoint on other data, without the data that it was trained on.

    raw_ids/FEATURE/integers   int64 [K], of histories: known ids in the order of rows
    raw_ids/FEATURE/text       uint8 [bytes], the same where ids are strings: UTF-8, joined,
    raw_ids/FEATURE/lengths    int32 [K], and bytes of each
    raw_ids/FEATURE/keys       int64 [K], of tabular data (`formats.vocabulary`)

Special rows, which come first, are not written: the kind says how many they are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lookback.checkpoints.format import Checkpoint
from lookback.formats.raw_ids import OF_HISTORIES, OF_ROWS, RawIds

RAW_IDS = "raw_ids/"
"""First part of the names of these tensors, which are no state of a run."""


def raw_id_tensors(feature: str, ids: RawIds) -> dict[str, NDArray]:
    """The tensors of one feature.

    Args:
      feature: its name.
      ids: as `formats.raw_ids.keys_of` gives them.
    """
    known, name = ids.known, f"{RAW_IDS}{feature}"
    if pa.types.is_integer(known.type) or not len(known):
        kind = "keys" if ids.special == OF_ROWS else "integers"
        return {f"{name}/{kind}": known.cast(pa.int64()).to_numpy()}
    text = known.cast(pa.large_string())
    _, offsets, data = text.buffers()
    bounds = np.frombuffer(offsets, np.int64)[text.offset :][: len(text) + 1]
    lengths = pc.binary_length(text).to_numpy().astype(np.int32)
    joined = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]
    return {f"{name}/text": joined, f"{name}/lengths": lengths}


def raw_ids_in(checkpoint: Checkpoint, feature: str) -> RawIds | None:
    """What `raw_id_tensors` wrote; None if the checkpoint does not say what the rows stand for."""
    name = f"{RAW_IDS}{feature}"
    for kind, special in (("integers", OF_HISTORIES), ("keys", OF_ROWS)):
        if f"{name}/{kind}" in checkpoint:
            return RawIds(special, pa.array(checkpoint[f"{name}/{kind}"]))
    if f"{name}/text" not in checkpoint:
        return None
    lengths = checkpoint[f"{name}/lengths"]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(checkpoint[f"{name}/text"])]
    return RawIds(OF_HISTORIES, pa.Array.from_buffers(pa.large_string(), len(lengths), buffers))
