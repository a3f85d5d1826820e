"""`python -m edgeff`."""

from edgeff.cli import main

if __name__ == "__main__":
    main()
