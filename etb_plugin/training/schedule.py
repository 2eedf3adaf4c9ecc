"""The schedule: a recipe laid over the steps of one run."""

from dataclasses import dataclass

from etb_plugin.errors import ConfigError
from etb_plugin.objectives import Point, Recipe, Run, Span


@dataclass(frozen=True)
class Schedule:
    """What holds at each step of a run: the objective's point, and the learning rate.

    `eps` (pixel units) and `learning_rate` are the run's own; the recipe gives their course. Raises ConfigError where
    the recipe is longer than the run.
    """

    recipe: Recipe
    eps: float
    learning_rate: float
    run: Run

    def __post_init__(self) -> None:
        recipe = self.recipe
        ends = {"eps_ramp": recipe.eps_ramp, "kappa": recipe.kappa, "mix": recipe.mix}
        late = {name: ramp.settled_at(self.run) for name, ramp in ends.items()}
        if recipe.swa_from is not None:
            late["swa_from"] = self.run.share(recipe.swa_from)
        late |= {f"decay_at {span}": self.run.share(span) for span in recipe.decay_at}
        for name, share in late.items():
            if share > 1 + 1e-9:  # shares of spans in epochs are sums of rounded quotients
                raise ConfigError(
                    f"{name} is reached after {share * self.run.steps:,.0f} steps, and the run has {self.run.steps:,} "
                    f"({self.run.epochs} epochs of {self.run.batches:,}): train longer, or write shares such as 0.5"
                )

    def point(self, step: int) -> Point:
        """Return eps, kappa and mix at `step`, counted from 0."""
        recipe, run = self.recipe, self.run
        grown = recipe.eps_ramp.at(step, run)
        return _point(recipe, self.eps, grown, recipe.kappa.at(step, run), recipe.mix.at(step, run))

    def rate(self, step: int) -> float:
        """Return the learning rate at `step`."""
        falls = sum(step / self.run.steps >= self.run.share(span) for span in self.recipe.decay_at)
        return self.learning_rate * self.recipe.decay**falls

    def reached(self, span: Span, epoch: int) -> bool:
        """Whether a span of the run is over when `epoch`, counted from 1, ends."""
        return epoch / self.run.epochs >= self.run.share(span) - 1e-9

    def settled(self, epoch: int) -> bool:
        """Whether eps, kappa and mix hold their final values throughout `epoch`, counted from 1."""
        progress = (epoch - 1) / self.run.epochs
        ramps = (self.recipe.eps_ramp, self.recipe.kappa, self.recipe.mix)
        return all(progress >= ramp.settled_at(self.run) for ramp in ramps)


def last_point(recipe: Recipe, eps: float) -> Point:
    """Return the point at which a schedule to the radius `eps` ends."""
    return _point(recipe, eps, recipe.eps_ramp.end, recipe.kappa.end, recipe.mix.end)


def _point(recipe: Recipe, eps: float, grown: float, kappa: float, mix: float) -> Point:
    if recipe.robust_weight is not None:
        kappa = 1 - recipe.robust_weight
    full = max(recipe.eps_ramp.start, recipe.eps_ramp.end) or 1.0
    return Point(eps * grown, kappa, mix, grown / full if recipe.regulariser else 1.0)  # nothing else asks for it
