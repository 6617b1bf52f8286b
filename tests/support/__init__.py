"""Shared by the tests: helpers and planted models."""
