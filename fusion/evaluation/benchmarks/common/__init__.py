"""Shared code of benchmarks: files of prompts and answers, image grids, detections and provenance."""
