"""Signed weights: the same model, bit for bit, or none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.scoring.signed_weights import signed_pays, with_signed_weights

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(5)


def _model(*, raw: bool = True) -> bytes:
    """x (n, 8) float32 times a quantised (8, 4) matrix, as the quantiser writes it."""
    weights, zeros = RNG.integers(0, 256, (8, 4), np.uint8), RNG.integers(100, 156, 4).astype(np.uint8)
    tensors = [numpy_helper.from_array(weights, "w")]
    if raw:
        tensors.append(numpy_helper.from_array(zeros, "z"))
    else:
        tensors.append(helper.make_tensor("z", TensorProto.UINT8, [4], zeros.tolist()))
    tensors.append(numpy_helper.from_array(np.arange(6, dtype=np.uint8), "other"))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "p"]),
        helper.make_node("MatMulInteger", ["q", "w", "p", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _run(model: bytes, x: np.ndarray) -> np.ndarray:
    return np.asarray(ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])


def test_signed_weights_give_the_same_products() -> None:
    model = _model()
    signed = with_signed_weights(model)
    assert signed is not None
    # Small activations: their products saturate on no processor.
    x = RNG.uniform(0, 0.2, (5, 8)).astype(np.float32)
    x[0, 0] = 1.0
    assert len(signed) == len(model)
    types = {t.name: t.data_type for t in onnx.load_from_string(signed).graph.initializer}
    assert types == {"w": TensorProto.INT8, "z": TensorProto.INT8, "other": TensorProto.UINT8}
    if signed_pays():
        assert (_run(signed, x) == _run(model, x)).all()


def test_a_model_whose_zero_points_are_not_raw_stays_as_it_is() -> None:
    assert with_signed_weights(_model(raw=False)) is None


def test_a_model_without_integer_products_stays_as_it_is() -> None:
    model = onnx.load_from_string(_model())
    del model.graph.node[1]
    assert with_signed_weights(bytes(model.SerializeToString())) is None


@pytest.mark.parametrize("broken", [b"", b"\xff" * 40, _model()[:-7]])
def test_bytes_that_are_no_model_are_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"varint|graph|field|wire"):
        with_signed_weights(broken)


def test_the_shipped_model_judges_alike_with_signed_weights() -> None:
    if not signed_pays():
        pytest.skip("this processor has no VNNI: signed products may saturate")
    path = next(Path("models").glob("*/model.int8.onnx"))
    model = path.read_bytes()
    signed = with_signed_weights(model)
    assert signed is not None
    ids = np.asarray([[0, *RNG.integers(10, 5_000, 62), 2]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    left, right = (ort.InferenceSession(m, providers=["CPUExecutionProvider"]).run(None, feed) for m in (model, signed))
    for a, b in zip(left, right, strict=True):
        assert np.array_equal(a, b)
