"""Stage 2: class activation maps of the training images."""

from wsss.cli import run_stage

if __name__ == "__main__":
    run_stage("seeds")
