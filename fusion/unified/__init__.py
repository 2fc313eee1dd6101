"""The unified model: a Hugging Face decoder driven from outside, with image embedding, flow head and objective."""
