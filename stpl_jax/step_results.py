"""What steps report, read a step late, so that the devices never wait for the host."""

import collections

import jax
import numpy as np

from stpl_jax import parallel
from stpl_jax.validation import NonFiniteLoss


class StepResults:
    """Logs metrics, finds values that are not finite, and agrees with the other processes when to stop.

    Args:
      row: name of the row, for messages.
      log: a `RunLog`.
      schedule: step -> learning rate.
      manager: of `checkpoint.open_manager`, for messages.
      stopping: a `StopAfterStep`, which notes the signals of this process.
    """

    def __init__(self, row, log, schedule, manager, stopping):
        self.row, self.log, self.schedule, self.manager = row, log, schedule, manager
        self.stopping, self._agreed, self._waiting = stopping, False, collections.deque()
        self._several = jax.process_count() > 1

    @property
    def stop(self):
        """Whether to stop after this step: the same in all processes at the same step."""
        return self._agreed if self._several else bool(self.stopping.seen)

    def add(self, step, names, metrics):
        """Takes a step's metrics, which stay on the devices, and its clips' names."""
        # The signal may reach one process alone, or each at another step: all stop where they have agreed to.
        agreed = parallel.any_process(bool(self.stopping.seen)) if self._several else None
        self._waiting.append((step, names, metrics, agreed))

    def read(self, all_but=0):
        """Reads the results that wait, but for the newest `all_but`.

        Raises:
          NonFiniteLoss: names the step and this process's clips.
        """
        while len(self._waiting) > all_but:
            step, names, metrics, agreed = self._waiting.popleft()
            values = {name: float(value) for name, value in parallel.unreplicate(metrics).items()}
            if not all(np.isfinite(value) for value in values.values()):
                newest = self.manager.latest_step()
                kept = f"The checkpoint of step {newest} in {self.manager.directory} is kept. " if newest else ""
                raise NonFiniteLoss(
                    f"{self.row}: step {step} gave {values} on clips {', '.join(names)}. {kept}"
                    "Look at these clips, or lower optim.learning_rate."
                )
            self.log.step(step, values | {"learning_rate": float(self.schedule(step - 1))})
            self._agreed = self._agreed or (self._several and parallel.is_set(agreed))
