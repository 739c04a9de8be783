"""Repair of a cut network: in closed form, layer by layer, or by training towards its source."""
