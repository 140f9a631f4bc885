"""``python -m porter`` and the command ``mnv3-port``."""

from porter.commands import main

if __name__ == "__main__":
    main()
