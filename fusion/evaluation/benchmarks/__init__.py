"""The field's benchmarks: pictures in the official layouts and the official scores of them, text before and after, and questions about pictures."""
