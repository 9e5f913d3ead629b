"""`train.py`, killed by SIGKILL in the second rollout or in an update on it: `python tests/dying.py MOMENT ARGUMENTS...`.

For the recipe `tests/recipe.py:grouped`, whose rollouts are two chunks of four prompts with three answers each. Moments: rollout (its
second chunk decodes), reward (one is worked out on a thread), update (a step is at work on its batch). Checkpoints are waited for, so the
one of step 3 is there by then.
"""

import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from vital_jax.rl.experience import Experience
from vital_jax.rl.rewards import Reward
from vital_jax.rl.rollout import Sampler
from vital_jax.training.checkpoint import Checkpoints

# What is called, at which call the run dies, and after how many seconds. Held-out answers are rewarded too, two of them twice by then.
MOMENTS = {
    "rollout": (Sampler, "draw", 4, 0.0),
    "reward": (Reward, "__call__", 35, 0.0),
    "update": (Experience, "__call__", 6, 0.01),
}


def die_at(kind: type, name: str, last: int, seconds: float) -> None:
    """Makes a method's call number `last` the end of this process."""
    method, calls = getattr(kind, name), []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, *arguments, **options):
        calls.append(None)
        if len(calls) == last:
            threading.Timer(seconds, die).start() if seconds else die()
        return method(self, *arguments, **options)

    setattr(kind, name, counted)


def saved_at_once(self, *arguments, save=Checkpoints.save):
    save(self, *arguments)
    self.wait()


if __name__ == "__main__":
    Checkpoints.save = saved_at_once
    die_at(*MOMENTS[sys.argv.pop(1)])
    train.configuration.run(train.main)
