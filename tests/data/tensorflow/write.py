"""Writes a checkpoint of every type, ``ckpt``, and a SavedModel, ``saved``, into the current directory, by TensorFlow."""

import numpy as np
import tensorflow as tf

NAMES = [
    "bfloat16",
    "bool",
    "complex128",
    "complex64",
    "float16",
    "float32",
    "float64",
    "int16",
    "int32",
    "int64",
    "int8",
    "uint16",
    "uint32",
    "uint64",
    "uint8",
]
module = tf.Module()
module.values = {
    name: tf.Variable(tf.cast(tf.reshape(tf.range(6) % (2 if name == "bool" else 99), (2, 3)), name)) for name in NAMES
}
module.empty = tf.Variable(np.zeros((0, 3), "f4"))
module.scalar = tf.Variable(2.5)
module.text = tf.Variable(["a", "bc"])
tf.train.Checkpoint(m=module).write("ckpt")


class Product(tf.Module):
    def __init__(self):
        self.w = tf.Variable(np.arange(12.0, dtype="f4").reshape(3, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def __call__(self, x):
        return x @ self.w


tf.saved_model.save(Product(), "saved")
