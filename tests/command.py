"""`etb`, and scripts, as subprocesses without waiting for imports: a process that has torch and more forks for each.

What is forked reads its arguments and ends as `python -m etb_plugin` does, or as `python SCRIPT`. Tests of the start
itself, of signals and of what libraries say as they are imported start a Python of their own.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_IMPORTED = (
    *("fontTools.subset", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "PIL.PngImagePlugin"),
    *("rich.console", "rich.table", "safetensors.torch", "torch", "typer.main"),
    *(f"etb_plugin.{part}" for part in ("comparison", "evaluation", "report.page", "training", "verification")),
)


def etb(
    *arguments: str, cwd: Path, timeout: float = 120, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `etb` with some arguments in a folder: with an environment of its own, in a Python of its own."""
    command = [sys.executable, "-m", "etb_plugin", *map(str, arguments)]
    if env is not None:
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    return _forked(command, cwd, timeout)


def python(script: Path, *arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder."""
    return _forked([sys.executable, str(script), *arguments], cwd, timeout)


def _forked(command: Sequence[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place, name) for name in ("out", "err")]
        request = {"command": command[1:], "cwd": str(cwd), "env": dict(os.environ), "to": [*map(str, outputs)]}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        process = int(server.stdout.readline())
        answered, _, _ = select.select([server.stdout], [], [], timeout)
        if not answered:
            os.kill(process, signal.SIGKILL)
        status = int(server.stdout.readline())
        out, err = (output.read_text() for output in outputs)
    if not answered:
        raise subprocess.TimeoutExpired(command, timeout, out, err)
    return subprocess.CompletedProcess(command, status, out, err)


@cache
def _server() -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], **pipes)  # type: ignore[call-overload]
    atexit.register(server.communicate)
    return server


def _draw() -> None:
    """Save a figure: what matplotlib looks up for its first is kept for all forks."""
    from etb_plugin.report.plots import figure, save_figure

    with tempfile.TemporaryDirectory() as place:
        save_figure(figure()[0], Path(place, "drawn"))


def _serve() -> dict[str, object] | None:
    """Fork for each line of the input, and say the fork's number and its status; in a fork, return the line."""
    for line in sys.stdin:
        process = os.fork()
        if not process:
            return json.loads(line)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


if __name__ == "__main__":
    import runpy

    for name in _IMPORTED:
        importlib.import_module(name)
    _draw()
    gc.freeze()  # or the garbage collector of each fork copies all of it
    request = _serve()
    if request is not None:
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        for descriptor, file in enumerate((os.devnull, *request["to"])):
            opened = os.open(file, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(i, "w", closefd=False) for i in (1, 2))
        script, *arguments = request["command"]
        if script == "-m":
            sys.argv, sys.path[0] = arguments, request["cwd"]
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
