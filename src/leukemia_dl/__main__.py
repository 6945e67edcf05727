"""`python -m leukemia_dl` is the command `leukemia-dl`."""

from leukemia_dl.cli import main

if __name__ == "__main__":
    main()
