"""Writes what lies beside this file into the current directory, by MXNet 1.9.1 (which needs NumPy 1.23)."""

import mxnet as mx

NAMES = ["float16", "float32", "float64", "int32", "int64", "int8", "uint8"]
arrays = {f"arg:{name}": mx.nd.arange(6, dtype=name).reshape((2, 3)) for name in NAMES}
arrays["aux:scalar"] = mx.nd.array([2.5])
arrays["a layer.weight"] = mx.nd.arange(24).reshape((1, 2, 3, 4))
mx.nd.save("dense.params", arrays)
mx.nd.save("list.params", [mx.nd.ones((2,)), mx.nd.zeros((3,))])
for kind in ("row_sparse", "csr"):
    sparse = mx.nd.ones((2, 3)).tostype(kind)
    sparse.wait_to_read()  # MXNet writes the shape of its values before it waits for them
    mx.nd.save(f"{kind}.params", {"w": mx.nd.ones((2,)), "s": sparse})
mx.util.set_np(shape=True, array=True)
mx.npx.save("np.params", {"scalar": mx.np.array(2.5), "empty": mx.np.zeros((0, 3)), "flag": mx.np.array([True, False])})
