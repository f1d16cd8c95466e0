"""What every public op takes and refuses."""

from inspect import Parameter, signature

import pytest
import torch

import wagle_kernels
from wagle_kernels import reference

from .helpers import CALLS


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 4), torch.zeros(32)[::2], torch.tensor(1.0)], ids=["2-D", "gaps", "0-D"]
)
@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_tensors_that_are_not_flat_and_contiguous(op, bad):
    with pytest.raises(ValueError, match=f"^{op} takes contiguous one-dimensional tensors, got shape"):
        CALLS[op](bad)


def test_ops_refuse_tensors_on_several_devices():
    with pytest.raises(ValueError, match="accumulate takes tensors on one device, got some on cpu and meta"):
        wagle_kernels.accumulate(torch.zeros(4), torch.zeros(4, device="meta"))


@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_an_unknown_backend(op):
    with pytest.raises(ValueError, match=r"Unknown backend 'cuda'; expected one of reference, triton"):
        CALLS[op](torch.zeros(16), backend="cuda")


@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_kernels_on_the_cpu(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match="backend 'triton' takes tensors on a GPU, got some on 'cpu'; leave `backend`"
    ):
        CALLS[op](torch.zeros(16), backend="triton")


def test_every_op_is_called_here():
    ops = {name for name in wagle_kernels.__all__ if hasattr(wagle_kernels.reference, name)}
    assert set(CALLS) == ops


@pytest.mark.parametrize("op", CALLS)
def test_both_backends_take_what_the_public_op_takes(op):
    triton_ops = pytest.importorskip("wagle_kernels.triton_ops", exc_type=ImportError)
    public, *backends = (signature(getattr(module, op)) for module in (wagle_kernels, reference, triton_ops))
    parameters = dict(public.parameters)
    assert parameters.pop("backend").kind is Parameter.KEYWORD_ONLY
    assert [backend.parameters for backend in backends] == [parameters, parameters]
    assert [backend.return_annotation for backend in backends] == [public.return_annotation] * 2
