"""Stage 1: a multi-label classifier from image-level tags."""

from wsss.cli import run_stage

if __name__ == "__main__":
    run_stage("classifier")
