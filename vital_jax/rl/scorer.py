"""Rewards beside decoding: chunks of replies are scored as they finish, by threads, and come back in the order of the prompts.

A judge waits for its endpoint and a user's function may be slow, while the accelerator decodes the next chunk. What is asked in one step is
answered in that step: nothing is carried over, so a step is a function of its prompts and its parameters alone.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vital_jax.pipeline.records import Record
from vital_jax.rl.builtin import Reply
from vital_jax.rl.rewards import Reward


class Scorer:
    """Threads that score; a context manager, which drops what has not begun when it is left.

    Args: rewards: from `rewards.load`. threads: calls at once, which a function of the user's has to bear.
    """

    def __init__(self, rewards: Sequence[Reward], threads: int = 8):
        self.rewards = tuple(rewards)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reward")
        self._chunks: dict[int, list[list[Future[float]]]] = {}

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for reward in self.rewards:
            reward.close()

    def add(self, place: int, records: Sequence[Record], replies: Sequence[Reply]) -> None:
        """Scores a chunk, and does not wait.

        Args: place: of the chunk among the step's, whenever it comes. records: of each reply, repeated for a group.
        Raises: ValueError for a place that is taken, or other numbers of records and replies.
        """
        if place in self._chunks or len(records) != len(replies):
            raise ValueError(f"chunk {place}: given before, or {len(records)} records for {len(replies)} replies")
        self._chunks[place] = [
            [self._pool.submit(reward, record, reply) for reward in self.rewards]
            for record, reply in zip(records, replies, strict=True)
        ]

    def result(self) -> dict[str, np.ndarray]:
        """Waits for all that was added since the last result.

        Returns: [n] float64 by name of the reward, unweighted, chunk by chunk in the order of their places.
        Raises: RewardError, of the first reply in that order; what has not begun is dropped.
        """
        rows = [row for place in sorted(self._chunks) for row in self._chunks[place]]
        self._chunks = {}
        try:
            scored = np.asarray([[future.result() for future in row] for row in rows], np.float64)
        except BaseException:
            for row in rows:
                for future in row:
                    future.cancel()
            raise
        columns = scored.reshape(len(rows), len(self.rewards)).T
        return {reward.name: column for reward, column in zip(self.rewards, columns, strict=True)}
