"""The number of steps of a training: given, or as many as a time holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from equitomo.training.config import OptimiserSettings
from equitomo.training.presets import SCRATCH_WARMUP

# Parts of the time after each of which the number of steps is chosen anew.
_PARTS = 20
# The warm-up takes at most this share of the steps that are first chosen.
_WARMUP = 0.1


@dataclass(frozen=True)
class Plan:
    """The steps of a training, as far as they are known, and how its learning rate changes over them.

    The share of the schedule that is done rises linearly from ``done`` at step ``since`` to 1 at step ``steps``. A
    number of steps that is chosen anew thus changes how fast the learning rate falls from there on, and never makes it
    jump.

    Parameters
    ----------
    steps
        The number of steps; ``None`` while it is not chosen.
    warmup
        The steps over which the learning rate rises.
    since
        The step at which the number was chosen.
    done
        The share of the schedule that was done by then.
    begun
        The step after which the training began again from scratch; 0 if it did not.

    Examples
    --------
    >>> Plan(steps=100, warmup=0, since=50, done=0.25).share(75)
    0.625
    """

    steps: int | None
    warmup: int
    since: int
    done: float = 0.0
    begun: int = 0

    @classmethod
    def of(cls, config: OptimiserSettings) -> Plan:
        """Return the plan that a training begins with."""
        return cls(None if config.minutes is not None else config.steps, config.warmup, config.warmup)

    def share(self, step: int) -> float:
        """Return the share of the schedule that is done at a step counted from 0."""
        if self.steps is None or step <= self.since:
            return self.done
        return self.done + (1 - self.done) * (step - self.since) / max(self.steps - self.since, 1)

    def changed(self, steps: int, step: int) -> Plan:
        """Return the plan with another number of steps from ``step`` on."""
        if steps == self.steps:
            # The same share from another point would be rounded differently.
            return self
        if self.steps is not None:
            return replace(self, steps=steps, since=max(step, self.since), done=self.share(step))
        warmup = min(self.warmup, int(_WARMUP * steps))
        return replace(self, steps=steps, warmup=warmup, since=max(step, self.begun + warmup))

    def begun_again(self, step: int, steps: int | None, warmup: int) -> Plan:
        """Return the plan of a training that begins again after ``step``, to end at step ``steps``."""
        return Plan(steps, warmup, step + warmup, begun=step)


def learning_rate(config: OptimiserSettings, step: int, plan: Plan | None = None) -> float:
    """Return the step size at a step counted from 0: a linear rise, then constant or half a cosine to zero."""
    plan = Plan.of(config) if plan is None else plan
    if step - plan.begun < plan.warmup:
        return config.learning_rate * (step - plan.begun + 1) / plan.warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * plan.share(step)))


class Budget:
    """The plan of a training, which follows the clock if the training has a time.

    The number of steps is first chosen from the time of the second step, or of the second group of steps where a
    device is not waited for after each one. It is chosen anew after every twentieth of the time, from the time of a
    step since then and before. A number from a checkpoint is kept, unless the time was changed.

    Parameters
    ----------
    config
        The settings, with ``minutes`` or ``steps``.
    clock
        A function that returns seconds.
    agreed
        A function that returns one number for all processes that train together, given that of each.

    Attributes
    ----------
    plan : Plan
        The steps as they are planned now.
    seconds : float
        The time that the training has taken so far, without that between an interruption and the resumption.
    """

    def __init__(
        self, config: OptimiserSettings, clock: Callable[[], float], agreed: Callable[[int], int] = int
    ) -> None:
        self.plan = Plan.of(config)
        self.seconds = 0.0
        self._minutes, self._clock, self._agreed = config.minutes, clock, agreed
        self._restart_steps = config.restart_steps
        self._is_kept = False
        self._before = 0.0
        # Step and time when the number was last chosen, or when the first steps were read; and the time of a step.
        self._mark: tuple[int, float] | None = None
        self._per_step: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the clock is looked at."""
        return self._minutes is not None

    def start(self) -> None:
        """Note that the training begins, or continues, now."""
        if self.is_timed:
            self._before = self._clock() - self.seconds
            # What passed before this is not the time of steps.
            self._mark = None

    def look(self, step: int) -> None:
        """Look at the clock after a step, and choose the number of steps if it is time to."""
        if self._minutes is None:
            return
        # A thousandth of a second is fine enough, and processes agree on whole numbers.
        self.seconds = self._agreed(round(1000 * (self._clock() - self._before))) / 1000
        if self._is_kept:
            return
        if self._mark is None:
            self._mark = step, self.seconds
            # A time that is over after the first steps leaves no choice.
            if self.seconds >= 60 * self._minutes:
                self.plan = self.plan.changed(step, step)
            return
        last, then = self._mark
        part = 60 * self._minutes / _PARTS
        if self.plan.steps is not None and self.seconds - then < part and step < self.plan.steps:
            return
        measured = (self.seconds - then) / (step - last)
        self._per_step = measured if self._per_step is None else (measured + self._per_step) / 2
        left = 60 * self._minutes - self.seconds
        # A clock that stands still would leave infinitely many.
        further = math.floor(left / max(self._per_step, 1e-3)) if left > 0 else 0
        self.plan, self._mark = self.plan.changed(step + further, step), (step, self.seconds)

    def begin_again(self, step: int) -> None:
        """Begin the schedule again after a step, with the number of steps, or in the time, that a restart has."""
        steps = self.plan.steps if self.is_timed else step + self._restart_steps
        self.plan = self.plan.begun_again(step, steps, max(self.plan.warmup, SCRATCH_WARMUP))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this; nothing if the training has a number of steps."""
        return {} if not self.is_timed else {"budget": {"plan": asdict(self.plan), "seconds": self.seconds}}

    def restore(self, state: Mapping[str, Any], minutes: float | None) -> None:
        """Continue after a checkpoint whose :meth:`state` and ``minutes`` these were."""
        if "budget" in state:
            self.plan, self.seconds = Plan(**state["budget"]["plan"]), state["budget"]["seconds"]
            self._is_kept = self.plan.steps is not None and minutes == self._minutes
