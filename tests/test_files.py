"""What is on disk: whole files, and folders that belong to one experiment."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from etb_plugin.errors import CheckpointError, ConfigError
from etb_plugin.files import claimed, read_json, write_file, write_json


def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a" / "file"
    write_file(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_files_are_readable_by_whom_the_umask_lets(tmp_path):
    write_file(tmp_path / "file", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_knows_no_nan_and_damage_is_named(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json")


def test_a_folder_keeps_its_experiment_wherever_its_files_lie(tmp_path):
    folder = tmp_path / "run"
    with claimed(folder, {"dataset": "digits", "eps": 0.1, "data_dir": "here"}):
        pass
    with claimed(folder, {"dataset": "digits", "eps": 0.1, "data_dir": "there"}):
        pass
    before = (folder / "experiment.yaml").read_bytes()
    with (
        pytest.raises(ConfigError, match=r"another experiment \(eps 0\.2 here, 0\.1 there\)"),
        claimed(folder, {"dataset": "digits", "eps": 0.2}),
    ):
        pytest.fail("claimed")
    assert (folder / "experiment.yaml").read_bytes() == before
    assert yaml.safe_load(before)["data_dir"] == "there"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"is not empty and holds no experiment\.yaml"), claimed(tmp_path, {}):
        pytest.fail("claimed")
    with pytest.raises(ConfigError, match="choose another --out"), claimed(tmp_path / "thesis.tex", {}):
        pytest.fail("claimed")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_hold_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from etb_plugin.files import claimed\n"
        "with claimed(Path(sys.argv[1]), {'a': 1}): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="in use by another process"), claimed(tmp_path / "run", {"a": 1}):
            pytest.fail("claimed")
        other.kill()
    with claimed(tmp_path / "run", {"a": 1}):  # a killed holder holds nothing
        pass
