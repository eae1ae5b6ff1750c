"""exact: while it holds, torch computes in full precision, in whatever program."""

from __future__ import annotations

import torch

from rn50feat.backends import exact


def test_a_host_programs_tf32_does_not_reach_the_network() -> None:
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        with exact.exact(), exact.exact():
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = before


def test_the_exact_context_holds_until_the_last_one_is_out() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    first, second = exact.exact(), exact.exact()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.conv.fp32_precision == before
