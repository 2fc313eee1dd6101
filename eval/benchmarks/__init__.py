"""The field's benchmarks of text-to-image models: pictures in the official layouts, and the official scores from what judges say of them."""
