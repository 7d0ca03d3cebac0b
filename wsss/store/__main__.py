"""``python -m wsss.store``."""

from wsss.store.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
