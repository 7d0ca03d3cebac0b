"""``python -m wsss``: the whole pipeline."""

from wsss.cli import run_all

if __name__ == "__main__":
    run_all()
