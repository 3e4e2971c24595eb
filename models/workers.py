"""Several processes that make one training step together: sums and lists of tensors over all of them.

`tf.distribute`'s MultiWorkerMirroredStrategy brings the processes together (by the variable TF_CONFIG, before any other
use of TensorFlow) and carries the sums as a ring (Patarasuk and Yuan 2009), in which every worker gets the same bits.
Its variables and its `fit` are not used: each worker keeps a whole replica of its own, all begin equal, and the same
sums move all alike. The item tables, which live outside of TensorFlow, are moved the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class Workers:
    """A process's place among all, and what it can ask of them. All must ask the same in the same order.

    Attributes:
        rank: this worker, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        """Joins the workers that TF_CONFIG names; returns when all are there."""
        ring = tf.distribute.experimental.CommunicationImplementation.RING
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(implementation=ring)
        )
        self.rank: int = self._strategy.cluster_resolver.task_id
        self.size: int = self._strategy.num_replicas_in_sync
        self._gather = tf.function(self._gathered, reduce_retracing=True)

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The sum of each tensor over all workers; within a compiled step."""
        def within() -> list[tf.Tensor]:
            here = [tf.identity(one) for one in tensors]  # on this replica's device: the sum asks where it is wanted
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return self._strategy.run(within)

    def rows_of_all(self, index: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that any worker has, each once, with the sums of their values: a sparse all-reduce.

        Args:
            index: [n] int, distinct; at least one.
            values: [n, width] float32.

        Returns:
            [m] int in ascending order and [m, width] float32.
        """
        indices, parts = (one.numpy() for one in self._gather(index.astype(np.int32), values))
        rows, place = np.unique(indices, return_inverse=True)
        sums = np.zeros((len(rows), values.shape[1]), np.float32)
        np.add.at(sums, place, parts)
        return rows, sums

    def _gathered(self, index: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def within() -> tuple[tf.Tensor, tf.Tensor]:
            context = tf.distribute.get_replica_context()
            return context.all_gather(tf.identity(index), 0), context.all_gather(tf.identity(values), 0)

        return self._strategy.run(within)
