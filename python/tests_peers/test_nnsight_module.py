"""NNsight against nnsight's own: the same bodies, the same numbers."""

import warnings

import module_bodies
import nnsight
import pytest
import torch
from torch_modules import make

from glassformer.nnsight.nnsight_module import NNsight


def equal(found, expected, tolerance):
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            equal(one, other, tolerance)
    else:
        assert found == expected


@pytest.mark.parametrize(("kind", "body"), module_bodies.CASES, ids=[body.__name__ for _, body in module_bodies.CASES])
def test_bodies(kind, body):
    """Every body of `module_bodies` gives the same numbers, bit for bit; gradients are summed in another order."""
    training = body.__name__.startswith("training")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = body(nnsight.NNsight(make(kind, training)[0]), make(kind)[1])
    found = body(NNsight(make(kind, training)[0]), make(kind)[1])
    assert found is not None
    equal(found, expected, 1e-14 if "gradients" in body.__name__ or "backward" in body.__name__ else 0)
