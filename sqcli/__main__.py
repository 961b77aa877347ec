"""`python -m sqcli`."""

from sqcli.app import main

main()
