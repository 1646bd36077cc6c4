"""Make `python -m service` the same as the command `octavo`."""

from service.cli import main

main()
