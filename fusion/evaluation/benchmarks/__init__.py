"""Public benchmarks: images in official layouts, their scores, text tasks before and after, and visual questions."""
