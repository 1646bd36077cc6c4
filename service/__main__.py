"""`python -m service` is `octavo`."""

from service.cli import main

main()
