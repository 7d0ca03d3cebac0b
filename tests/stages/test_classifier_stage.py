from __future__ import annotations

import pytest
import torch
from conftest import MakePipeline
from safetensors.torch import load_file

from wsss.build import build
from wsss.pipeline import Pipeline


def test_metrics(made: Pipeline):
    metrics = made.artifact("classifier").metrics
    assert set(metrics) == {"map", "ap", "images"}
    assert list(metrics["ap"]) == list(made.data.classes)
    assert metrics["map"] == pytest.approx(sum(metrics["ap"].values()) / 3)
    assert metrics["images"] == 4


def test_the_weights_are_those_of_the_network(made: Pipeline):
    """Trained: they differ from those the network is built with."""
    artifact = made.artifact("classifier")
    network = build(made.config, "classifier", num_classes=3)
    before = network.head.weight.clone()
    artifact.read_weights(network)
    assert set(load_file(artifact.directory / "weights.safetensors")) == set(network.state_dict())
    assert not torch.equal(before, network.head.weight)
    with torch.no_grad():
        assert network.eval()(torch.rand(2, 3, 48, 64)).shape == (2, 3)


def test_the_checkpoint_holds_plain_values(made: Pipeline):
    state = torch.load(made.artifact("classifier").checkpoint, weights_only=True)
    assert state["epoch"] + 1 == made.config.recipe.classifier.epochs


def test_supervision_says_where_tags_and_checkpoint_come_from(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline("data.tags=xml", "recipe.classifier.keep=best_val", "recipe.classifier.epochs=1")
    manifest = pipeline.make("classifier").manifest
    assert manifest["supervision"] == "image tags (from xml); val tags (checkpoint)"
    assert manifest["data"]["tags"] == "xml"
