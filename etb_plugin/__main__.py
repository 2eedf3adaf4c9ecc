"""`python -m etb_plugin` is `etb`."""

from etb_plugin.cli import main

main()
