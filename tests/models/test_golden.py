"""Every architecture is the public zoo's: names, shapes, counts, and outputs in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eakd.models.inference import count_macs, count_parameters

from .helpers import ZOO, build, facts, filled, numbers

CASES = {
    **ZOO,
    "resnet18@64": ("tiny64:ResNet18", 64, 200),
    "vgg13@64": ("tiny64:vgg13", 64, 200),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_zoos(case: str) -> None:
    zoo, size, classes = CASES[case]
    wanted = {
        key.split("/")[-1]: value
        for key, value in numbers().items()
        if key.startswith(f"{zoo.replace(':', '_')}/out64/")
    }
    batch = torch.as_tensor(numbers()[f"in/images{size}"]).double()
    with torch.device("meta"):  # initial weights would be drawn in vain
        model = build(case.split("@")[0], classes)
    # The weights are drawn in float64, so the module must be float64 before it is filled.
    model = model.double().to_empty(device="cpu")
    for counter in (x for x in model.buffers() if not x.is_floating_point()):
        counter.zero_()
    model = filled(model).eval()
    with torch.no_grad():
        output = model(batch)
        found = {
            "logits": output.logits,
            "pooled_feat": output.pooled[:, :64],
            "logits_trainmode": model.train()(batch, features=False).logits,
            "feats_mean": torch.stack([x.mean() for x in output.features]),
            "feats_meansq": torch.stack([x.square().mean() for x in output.features]),
            "preact_feats_mean": torch.stack([x.mean() for x in output.preactivations]),
            "preact_feats_meansq": torch.stack([x.square().mean() for x in output.preactivations]),
        }
    for key, value in wanted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found[key].numpy().reshape(value.shape),
            value,
            rtol=1e-6,
            atol=1e-9 * scale,
            err_msg=key,
        )
    shapes = facts()[zoo]
    assert [list(x.shape[1:]) for x in output.features] == shapes["feats_shapes"]
    if shapes["preact_feats_shapes"]:
        assert [list(x.shape[1:]) for x in output.preactivations] == shapes["preact_feats_shapes"]


@pytest.mark.parametrize("case", CASES)
def test_state_dict_and_counts_equal_the_zoos(case: str) -> None:
    zoo, size, classes = CASES[case]
    wanted = facts()[zoo]
    with torch.device("meta"):
        model = build(case.split("@")[0], classes)
    state = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert state == wanted["state_dict"]  # in this order
    assert count_parameters(model) == wanted["params"]
    assert count_macs(model.to_empty(device="cpu"), size) == wanted["macs"]
