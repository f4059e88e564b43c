"""`python -m gqakit`."""

from gqakit.cli import main

main()
