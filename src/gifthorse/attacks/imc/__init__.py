"""IMC and what adapts it to defenses."""
