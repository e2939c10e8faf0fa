"""``python -m vitbench``: the same as the command ``vitbench``."""

from vitbench.cli import main

if __name__ == "__main__":
    main()
