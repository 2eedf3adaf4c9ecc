"""The command `etb`: one file per subcommand, each turning flags into one call and its result into text."""

from etb_plugin.cli.main import main

__all__ = ["main"]
