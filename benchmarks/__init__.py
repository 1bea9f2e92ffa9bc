"""How fast, how safe, how well tested: programs, each with its own --help."""
