"""The networks, their averages and their files: know nothing of diffusion.  Read first: unet.py."""
