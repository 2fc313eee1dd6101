"""The field's benchmarks: images in official layouts, their scores, text before and after, questions on images."""
