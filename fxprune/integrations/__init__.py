"""Integrations: fxprune inside other tools, by their conventions; one module per tool, the only place that depends on it."""
