"""``python -m wsss.report``: the index of a store, and pages of two experiments."""

from wsss.report.command import main

if __name__ == "__main__":
    raise SystemExit(main())
