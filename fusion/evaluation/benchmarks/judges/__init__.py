"""Judges of benchmark images: object detectors and models that answer questions about images."""
