"""`python -m fastsketch`: the command line, as torchrun wants to start it."""

from fastsketch.cli import main

if __name__ == "__main__":
    main()
