"""The built-in backbones, provided by the hook that plugins use.

The builder for architectures that Keras ships is in `models/applications.py`.
"""
