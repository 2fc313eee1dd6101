"""What benchmarks share: files of prompts and answers, image grids, detections and provenance."""
