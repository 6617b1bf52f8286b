"""fxprune inside other people's tools, by their conventions: one module a tool, each the only place that knows it."""
