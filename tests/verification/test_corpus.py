"""A part of the corpus, as `python -m tests.verification.corpus` runs all of it."""

import itertools
import subprocess
import sys

import pytest

from tests.verification import corpus


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_property_of_the_corpus_has_a_wrong_answer(tmp_path, monkeypatch):
    every = corpus.networks
    monkeypatch.setattr(corpus, "networks", lambda folder: itertools.islice(every(folder), 0, None, 15))
    monkeypatch.setattr(corpus, "collision", lambda folder: iter(()))
    corpus.write(tmp_path)
    command = (sys.executable, "-m", "etb_plugin", "verify", "--instances", str(tmp_path / "instances.csv"))
    subprocess.run((*command, "--out", str(tmp_path / "results")), check=True, stdout=subprocess.DEVNULL)
    found = corpus.judged(tmp_path)
    assert set(found) <= {"decided", "refused", "undecided"}, found
    assert len(found["decided"]) >= 20
