"""``python -m lithify`` is the ``lithify`` command."""

from lithify.cli import main

if __name__ == "__main__":
    main()
