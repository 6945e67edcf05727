"""The built-in backbones: one file each, each a plugin like anybody's.

Their shared builder for architectures that Keras ships is in `models/applications.py`.
"""
