"""The curves of a training for TensorBoard: a scalar of each figure and round, in event files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


class Curves:
    """One event file of a training; without a ``folder`` nothing is written."""

    def __init__(self, folder: str) -> None:
        """The file is made with the first row."""
        self._folder = folder
        self._writer: Any = None

    def write(self, row: Mapping[str, float]) -> None:
        """Append one round; `tf.summary.scalar` would need the tensorboard package to write it."""
        if not self._folder:
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._folder)
        metadata = tf.compat.v1.SummaryMetadata(data_class=1)
        metadata.plugin_data.plugin_name = "scalars"
        with self._writer.as_default(step=int(row.get("updates", row["epoch"]))):
            for name, value in row.items():
                if name not in ("epoch", "updates"):
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
