"""Codecs: pixels to latents of unit scale and back."""
