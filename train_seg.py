"""Stage 4: a segmentation network from pseudo-labels, evaluated."""

from wsss.cli import run_stage

if __name__ == "__main__":
    run_stage("segmenter")
