"""A vision transformer in small: a custom layer, a nested model with BatchNorm and dropout, tokens as its result."""

import keras

WIDTH = 16


@keras.saving.register_keras_serializable("toy_vit")
class Embed(keras.layers.Layer):
    """Patches of 8 x 8 pixels as tokens, behind a class token, with positions."""

    def __init__(self, width, **settings):
        super().__init__(**settings)
        self.width = width
        self.patches = keras.layers.Conv2D(width, 8, strides=8)

    def build(self, shape):
        self.patches.build(shape)
        self.token = self.add_weight(shape=(1, 1, self.width), initializer="random_normal", name="token")
        tokens = (shape[1] // 8) * (shape[2] // 8) + 1
        self.positions = self.add_weight(shape=(1, tokens, self.width), initializer="random_normal", name="positions")

    def call(self, images):
        x = self.patches(images)
        x = keras.ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.width))
        token = keras.ops.tile(keras.ops.cast(self.token, x.dtype), (keras.ops.shape(x)[0], 1, 1))
        return keras.ops.concatenate([token, x], axis=1) + keras.ops.cast(self.positions, x.dtype)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def encoder(tokens, width):
    """Return a model of two blocks; Keras names all of its layers but those called `norm`."""
    inputs = x = keras.Input((tokens, width))
    for _ in range(2):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 8, dropout=0.1)(y, y)])
        y = keras.layers.Dense(2 * width, "gelu")(keras.layers.BatchNormalization(momentum=0.9)(x))
        x = keras.layers.Add()([x, keras.layers.Dense(width)(y)])
    return keras.Model(inputs, keras.layers.LayerNormalization(name="norm")(x))


def build(inputs, weights):
    x = Embed(WIDTH)(inputs)
    return encoder(x.shape[1], WIDTH)(x)
