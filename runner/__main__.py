"""``python -m runner``: the same program as the command ``runner``."""

from runner.cli.main import main

if __name__ == "__main__":
    main()
