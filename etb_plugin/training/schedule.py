"""The schedule: a recipe laid over the steps of one run."""

from dataclasses import dataclass

from etb_plugin.objectives import Point, Recipe


@dataclass(frozen=True)
class Schedule:
    """What holds at each step of `epochs` epochs of `batches`: the objective's point, and the learning rate.

    `eps` (pixel units) and `learning_rate` are the run's own; the recipe gives their course.
    """

    recipe: Recipe
    eps: float
    learning_rate: float
    epochs: int
    batches: int

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.batches

    def point(self, step: int) -> Point:
        """Return eps, kappa and mix at `step`, counted from 0."""
        progress = step / self.steps
        recipe = self.recipe
        return Point(self.eps * recipe.eps.at(progress), recipe.kappa.at(progress), recipe.mix.at(progress))

    def rate(self, step: int) -> float:
        """Return the learning rate at `step`."""
        return self.learning_rate * 0.1 ** sum(step / self.steps >= share for share in self.recipe.decay_at)

    def settled(self, epoch: int) -> bool:
        """Whether eps, kappa and mix hold their final values throughout `epoch`, counted from 1."""
        progress = (epoch - 1) / self.epochs
        return all(ramp.settled(progress) for ramp in (self.recipe.eps, self.recipe.kappa, self.recipe.mix))
