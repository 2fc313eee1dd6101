"""The field's diffusion transformers and UNets, one file each."""
