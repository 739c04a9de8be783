"""Closed-form repair of a cut network, layer by layer, without gradients."""
