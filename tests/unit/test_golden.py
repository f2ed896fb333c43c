"""Four ways to compute an adapter agree with the logits of the SSF reference code. See tests/golden."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from adapters.merge import merge_sites
from backbone.executors.openvino_graph import trace
from backbone.executors.quiet_openvino import hint, openvino
from backbone.mixed import MixedModel
from backbone.traced import TracedRows
from backbone.tuned import TunedModel
from tests.golden_data import GOLDENS, Official, read

pytestmark = pytest.mark.usefixtures("one_thread")

# the reference code itself moves by 1.5e-6 between torch 1.7.1 and 2.15; logits are of order 3
TOLERANCE = 1e-5
WEIGHTS = [(family, weights) for family, golden in GOLDENS.items() for weights in golden.weights]


def tuned(official: Official) -> Tensor:
    model = TunedModel(official.backbone.model, official.backbone.sites)
    model.set_vectors(official.scale, official.shift)
    return model(official.images)


def mixed(official: Official) -> Tensor:
    return MixedModel(official.backbone.model, official.backbone.sites)(official.images, official.rows())


def graph(official: Official) -> Tensor:
    sites = official.backbone.sites
    model = MixedModel(official.backbone.model, sites, TracedRows(sites)).eval()
    inputs = official.images, official.rows().contiguous()
    traced = trace(model, inputs)
    compiled = openvino.Core().compile_model(traced, "CPU", {hint.inference_precision: openvino.Type.f32})
    return torch.from_numpy(compiled([tensor.numpy() for tensor in inputs])[0])


def merged(official: Official) -> Tensor:
    return merge_sites(official.backbone, official.scale, official.shift)(official.images)


# a graph takes seconds, and differs between the weights of a model in nothing but numbers
@pytest.mark.parametrize(
    ("compute", "family", "weights"),
    [
        (compute, *one)
        for compute in (tuned, mixed, graph, merged)
        for one in WEIGHTS
        if (compute, one[1]) != (graph, "ema")
    ],
)
@torch.no_grad()
def test_official_logits_are_reproduced(
    compute: Callable[[Official], Tensor], family: str, weights: str
) -> None:
    official = read(family, weights)
    got = official.classify(compute(official))
    torch.testing.assert_close(got, official.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", GOLDENS)
def test_official_sites_are_those_of_the_reference_code(family: str) -> None:
    assert set(GOLDENS[family].sites.values()) == set(read(family, "raw").backbone.sites.official.widths)


@cache
def mixed_model(family: str, weights: str) -> MixedModel:
    backbone = read(family, weights).backbone
    return MixedModel(backbone.model, backbone.sites)


@pytest.mark.parametrize(
    ("family", "weights", "site"),
    [(*one, site) for one in WEIGHTS for site in GOLDENS[one[0]].sites.values()],
)
@torch.no_grad()
def test_golden_data_sees_each_site(family: str, weights: str, site: str) -> None:
    official = read(family, weights)
    features = mixed_model(family, weights)(official.images, official.rows(without=site))
    assert (official.classify(features) - official.logits).abs().max() > 1000 * TOLERANCE
