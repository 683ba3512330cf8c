"""``python -m marblerun`` is the command ``marblerun``."""

from marblerun.cli.main import main

if __name__ == "__main__":
    main()
