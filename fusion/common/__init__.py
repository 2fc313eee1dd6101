"""Shared tools without a model: files, configs, caches on disk, HTML pages, charts and scores."""
