"""Stage 3: pseudo-labels from seeds."""

from wsss.cli import run_stage

if __name__ == "__main__":
    run_stage("labels")
