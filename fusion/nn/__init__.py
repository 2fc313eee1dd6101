"""Small neural network parts shared by the unified model and the diffusion transformers."""
