"""The engine `print`: one shell line for each task, for SLURM arrays and such. It runs nothing."""

import shlex
from collections.abc import Sequence

from etb_plugin.comparison.cells import Task
from etb_plugin.comparison.engines.registry import EngineRun, Finished, register_engine
from etb_plugin.comparison.journal import Watch
from etb_plugin.comparison.work import Workshop
from etb_plugin.errors import ConfigError, EtbError
from etb_plugin.experiment import Engine
from etb_plugin.registry import own_code


@register_engine("print")
class Print(EngineRun):
    """Prints `etb cell FOLDER ID` for every task; the same comparison with another engine then finds them done."""

    trains = False

    def __init__(self, engine: Engine, device: str) -> None:
        if engine.workers is not None or engine.address is not None:
            raise ConfigError("engine print runs nothing, so it takes no workers and no address")

    def run(
        self, tasks: Sequence[Task], shop: Workshop, watch: Watch, finished: Finished, evaluation: bool
    ) -> dict[Task, EtbError]:
        """Print the lines."""
        for task in tasks:
            words = ["etb", "cell", str(shop.experiment.folder), task.cell.id, *["--validate"] * task.validate]
            for flag, name in (("--model", task.cell.model), ("--dataset", shop.experiment.dataset)):
                words += [flag, name] * (own_code(name) is not None)
            print(shlex.join(words))
        return {}
