"""Puts this folder's servers within reach of its tests."""
