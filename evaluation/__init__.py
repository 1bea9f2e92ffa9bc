"""How good are pictures?  Knows no diffusion and no flag.  Read first: features.py."""
