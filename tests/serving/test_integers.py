import pytest

from serving import integers
from serving.integers import UNSIGNED_WEIGHTS, set_exact_integers


class Options(dict):
    """In place of ONNX Runtime's, which servers have and these tests do not need."""

    add_session_config_entry = dict.__setitem__


@pytest.mark.parametrize(
    ("features", "entries"),
    [
        pytest.param(["avx2", "fma"], {UNSIGNED_WEIGHTS: "1"}, id="products are cut to 16 bits"),
        pytest.param([], {UNSIGNED_WEIGHTS: "1"}, id="unknown CPU"),
        pytest.param(["avx2", "avx_vnni"], {}, id="VNNI"),
        pytest.param(["avx512f", "avx512_vnni"], {}, id="VNNI of 512 bits"),
    ],
)
def test_weights_become_unsigned_where_signed_ones_are_not_exact(features, entries, monkeypatch):
    monkeypatch.setattr(integers, "cpu", lambda: {"features": features})
    options = Options()
    set_exact_integers(options)
    assert options == entries
