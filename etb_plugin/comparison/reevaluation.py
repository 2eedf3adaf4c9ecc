"""Networks from disk, put to the exam of a comparison."""

import contextlib
from pathlib import Path

from etb_plugin.comparison.journal import Watch
from etb_plugin.comparison.work import check_bounds, evaluations, results_of
from etb_plugin.experiment import Evaluated, resolve_device
from etb_plugin.files import claimed
from etb_plugin.results import Result, write_results
from etb_plugin.results.networks import restore


class Reevaluation:
    """Networks from disk, checked and ready to be evaluated. Raises like Comparison, and CheckpointError."""

    def __init__(self, path: Path, request: Evaluated) -> None:
        self.data, self.trained = restore(path, request)
        about = self.trained[0].about
        eps = self.data.source.default_eps if about["eps"] is None else about["eps"]
        self.exam = request.exam((eps,), ("ibp", "crown-ibp"), request.seed)
        for trained in self.trained:
            check_bounds(trained.network, self.data, trained.about["model"], self.exam)
        known = {"dataset": about["dataset"], "model": about["model"], "device": resolve_device(request.device)}
        self.request = request.model_copy(
            update={**known, "eps_test": self.exam.eps_test, "certify": self.exam.certify}
        )

    @property
    def title(self) -> str:
        """The evaluation in one line."""
        r = self.request
        return f"{r.dataset}, {r.model}; PGD {r.pgd_steps} steps x {r.pgd_restarts}"

    def run(self, watch: Watch, out: Path | None) -> list[Result]:
        """Evaluate every network and return the results, written to `out` where one is given."""
        described = self.request.model_dump(mode="json", exclude_none=True)
        results: list[Result] = []
        with claimed(out, described) if out is not None else contextlib.nullcontext():
            for trained in self.trained:
                name = trained.about["method"]
                found = evaluations(trained.network, self.data.test, self.data, self.exam, name, watch)
                some = results_of(trained.network, found, trained.about, None)
                watch.finished(name, None, some)
                results += some
            if out is not None:
                write_results(out, described, self.request.device, results, {})
        return results
