"""Distances between sets of images: FID, KID, precision and recall, FD-DINO and CMMD."""
